// SPDX-License-Identifier: Apache-2.0
// The run at a glance: where it stands, and the few numbers that an operator looks for first.

import * as derive from "../derive.js";
import { h, setAttribute, setCut, setShare, setText, show } from "../dom.js";
import * as format from "../format.js";

function tile(label, extra = null) {
  const value = h("dd", { class: "tile-value" });
  const note = h("dd", { class: "tile-note" });
  return { element: h("div", { class: "tile" }, h("dt", {}, label), value, extra && h("dd", { class: "tile-bar" }, extra), note), value, note };
}

function bar(label) {
  const fill = h("i", {});
  const element = h("div", { class: "meter", role: "progressbar", "aria-label": label, "aria-valuemin": "0" }, fill);
  return {
    element,
    update(now, of) {
      setAttribute(element, "aria-valuemax", of);
      setAttribute(element, "aria-valuenow", Math.min(now, of));
      setShare(fill, of ? now / of : 0);
    },
  };
}

function trend(rows) {
  const measured = rows.filter((row) => row.accuracy !== null);
  const [before, last] = measured.slice(-2);
  if (!last) return before ? `after round ${before.round}` : "not measured yet";
  const points = 100 * (last.accuracy - before.accuracy);
  const change = Math.abs(points) < 0.05 ? "no change" : `${points > 0 ? "+" : "−"}${Math.abs(points).toFixed(1)} points`;
  return `${change} since round ${before.round}`;
}

function deadline(run, now) {
  if (run.phase !== "open") return "";
  const foreseen = derive.roundLeft(run, now);
  if (foreseen !== null) return `about ${format.duration(foreseen)} left`;
  if (run.deadline_at > 0) {
    const left = run.deadline_at - now;
    return left > 0 ? `deadline in ${format.duration(left)}` : "past its deadline";
  }
  return run.round_opened_at > 0 ? `open for ${format.duration(now - run.round_opened_at)}` : "";
}

/** The tiles; `onAttention` filters the list of nodes. */
export function summaryView(store, onAttention) {
  const roundBar = bar("rounds done");
  const updateBar = bar("updates of this round");
  const tiles = {
    round: tile("Round", roundBar.element),
    updates: tile("Updates", updateBar.element),
    nodes: tile("Nodes online"),
    accuracy: tile("Accuracy"),
    loss: tile("Loss, held-out"),
    traffic: tile("Traffic"),
    digest: tile("Model digest"),
  };
  tiles.digest.value.classList.add("mono");
  const attention = h("button", { type: "button", class: "link warn-ink", on: { click: onAttention } });
  const calm = h("span");
  tiles.nodes.note.append(attention, calm);
  const security = h("p", { class: "security" });
  const element = h(
    "section",
    { class: "summary", "aria-label": "The run at a glance" },
    h("dl", { class: "tiles" }, ...Object.values(tiles).map((one) => one.element)),
    security,
  );

  function updateNodes(run, nodes) {
    const online = nodes.filter((node) => node.online).length;
    const needy = nodes.filter((node) => derive.attention(node, run).length).length;
    setText(tiles.nodes.value, `${online} of ${nodes.length}`);
    setText(attention, `${needy} need${needy === 1 ? "s" : ""} attention`);
    const out = run.excluded.length ? `${run.excluded.length} excluded` : "";
    setText(calm, needy ? (out ? `, ${out}` : "") : nodes.length ? out || "all is well" : "none has spoken yet");
    show(attention, needy > 0);
  }

  function updateRound(run) {
    const done = derive.published(run);
    setText(tiles.round.value, `${derive.roundTitle(run, derive.shownRound(run))} of ${run.total_rounds}`);
    roundBar.update(done, run.total_rounds);
    setText(tiles.round.note, run.phase === "open" ? deadline(run, store.now()) : derive.phase(run).text);
    const open = run.phase === "open" || run.phase === "closing";
    const wanted = run.buffer_size || run.cohort.length;
    setText(tiles.updates.value, open ? `${run.accepted.length} of ${wanted}` : format.DASH);
    updateBar.update(open ? run.accepted.length : 0, open ? wanted : 0);
    const arrived = run.cohort.length - run.accepted.length;
    setText(tiles.updates.note, !open ? "no round is open" : arrived > 0 ? `${format.count(arrived, "node")} at work` : "all are in");
  }

  function updateModel(run, nodes) {
    const last = run.rows.at(-1);
    const measured = run.rows.findLast((row) => row.accuracy !== null);
    // Where the coordinator has no rows of its own, what nodes measured on theirs.
    const theirs = measured ? null : run.rows.findLast((row) => row.nodes);
    const found = theirs && derive.onNodes(theirs);
    setText(tiles.accuracy.value, format.percent(measured?.accuracy ?? found?.accuracy));
    setText(tiles.accuracy.note, found ? `on ${format.count(found.rows, "row")} of ${format.count(found.count, "node")}, round ${theirs.round}` : last && last !== measured && run.phase !== "finished" ? `evaluating round ${last.round}` : trend(run.rows));
    setText(tiles.loss.value, format.loss(run.rows.findLast((row) => row.loss !== null)?.loss ?? found?.loss));
    setText(tiles.loss.note, last ? `training ${format.loss(last.train_loss)}` : "not measured yet");
    const sum = (key) => run.rows.reduce((total, row) => total + row[key], 0);
    setText(tiles.traffic.value, format.traffic(sum("uplink_bytes") + sum("downlink_bytes")));
    setText(tiles.traffic.note, last ? `${format.traffic(sum("uplink_bytes"))} up, ${format.traffic(sum("downlink_bytes"))} down` : "no round is finished");
    const same = nodes.filter((node) => derive.digestState(node, run).key === "good").length;
    setCut(tiles.digest.value, run.digest.slice(0, 12) || format.DASH);
    setAttribute(tiles.digest.value, "title", run.digest || null);
    setText(tiles.digest.note, run.digest ? `the same on ${same} of ${nodes.length}` : "none published yet");
  }

  return {
    element,
    update({ run }) {
      const nodes = Object.values(run.nodes);
      updateRound(run);
      updateNodes(run, nodes);
      updateModel(run, nodes);
      setText(security, [run.method, run.security].filter(Boolean).join(" · "));
      security.classList.toggle("bad-ink", run.security.includes("INSECURE"));
    },
  };
}
