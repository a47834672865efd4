// SPDX-License-Identifier: Apache-2.0
// The bar at the top: which run, how it stands, whether what is seen is live, and the operator's buttons.

import { BASE } from "../api.js";
import * as derive from "../derive.js";
import { h, setAttribute, setText, show } from "../dom.js";
import * as format from "../format.js";
import { pathOfRun } from "../store.js";

export function barView(store, bar, notice, { onControl, onHelp, onCommand }) {
  const run = h("a", { class: "run-name", href: pathOfRun, "data-route": true });
  const round = h("span");
  const word = h("span", { class: "pill-word" });
  const phase = h("span", { class: "pill" }, round, word);
  const live = h("span", { class: "live" });
  const pause = h("button", { type: "button", on: { click: () => onCommand(store.state.run.paused ? "resume" : "pause") } });
  const end = h("button", { type: "button", on: { click: () => onCommand("end_round") } }, "End round now");
  const control = h("button", { type: "button", class: "quiet", on: { click: onControl } });
  const help = h("button", { type: "button", class: "quiet round", "aria-label": "Keyboard help", title: "Keyboard help (?)", on: { click: onHelp } }, "?");
  bar.append(
    ...(BASE ? [h("a", { class: "all-runs", href: "/" }, "All runs")] : []),
    h("a", { class: "brand", href: pathOfRun, "data-route": true, "aria-label": "fedkrso, the run" }, h("img", { src: "/static/icon.svg", alt: "", width: 22, height: 22 })),
    h("div", { class: "bar-run" }, run, phase),
    live,
    h("div", { class: "bar-actions" }, pause, end, control, help),
  );
  const lost = h("p", { class: "lost" });
  const said = h("p", { class: "said", role: "status" });
  const dismiss = h("button", { type: "button", class: "quiet", on: { click: () => store.set({ said: null }) } }, "Dismiss");
  const answer = h("div", { class: "answer" }, said, dismiss);
  notice.append(lost, answer);

  function updateConnection({ connection, run: view }) {
    const over = view?.phase === "finished";
    const at = format.clock(connection.since);
    setAttribute(live, "data-key", connection.live ? "good" : over ? "none" : "bad");
    setText(live, connection.live ? "live" : over ? "ended" : "not live");
    const trying = `${connection.ever ? "Connection lost" : "The coordinator has not been reached"} since ${at}. Trying again …`;
    setText(lost, over ? `The run is finished; its coordinator left at ${at}. What you see is its last word.` : trying);
    setAttribute(notice, "data-key", connection.live || over ? null : "bad");
  }

  return {
    update(state) {
      const { run: view, session, said: answered, connection } = state;
      updateConnection(state);
      setText(run, view?.run ?? "fedkrso");
      const now = view ? derive.phase(view) : { key: "waiting", text: "loading" };
      setText(round, view ? `${derive.shownRound(view)}/${view.total_rounds}` : "");
      setText(word, view ? ` · ${now.text}` : now.text);
      setAttribute(phase, "data-key", now.key);
      const commands = session.authorized && view && view.phase !== "finished" && view.phase !== "finishing";
      show(pause, commands);
      show(end, commands && view.phase === "open");
      if (view) setText(pause, view.paused ? "Resume" : "Pause");
      setText(control, session.authorized ? session.name || "operator" : session.control ? "Take control" : "Read-only");
      setText(said, answered?.text ?? "");
      setAttribute(answer, "data-key", answered ? (answered.good ? "good" : "bad") : null);
      show(answer, answered !== null);
      show(lost, !connection.live);
      show(notice, answered !== null || !connection.live);
    },
  };
}
