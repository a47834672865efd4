// SPDX-License-Identifier: Apache-2.0
// One node: what it is, what it does, where its memory goes over time, what its sensors say, and what happened to it.

import * as derive from "../derive.js";
import { h, setAttribute, setCut, setText, show } from "../dom.js";
import * as format from "../format.js";
import { pathOfRun } from "../store.js";
import { memoryChart, partsList, sensorCharts, historyTable } from "./nodeparts.js";
import { eventsView } from "./events.js";
import { memoryMeter } from "./nodes.js";

/** Label and text of each fact; empty ones are left out. */
function facts(node, run, now) {
  const readings = node.readings ?? {};
  const percent = (value) => (value === null || value === undefined ? "" : `${value.toFixed(0)} %`);
  const battery = readings.battery_percent === undefined ? "" : `${percent(readings.battery_percent)}${readings.on_mains ? ", on mains" : ", on battery"}`;
  return [
    ["Device", node.device],
    ["Computes", node.route],
    ["Software", node.software],
    ["Last word", format.ago(node.last_seen_at === null ? null : now - node.last_seen_at)],
    ["Round", derive.part(node, run)],
    ["Loss", node.loss === null ? "" : format.loss(node.loss)],
    ["Model", node.version < 0 ? "none yet" : `version ${node.version}, ${derive.digestState(node, run).text}`],
    ["Digest", node.digest, "mono"],
    ["Budget", node.budget_bytes ? format.memory(node.budget_bytes) : ""],
    ["Peak", node.peak_bytes ? `${format.memory(node.peak_bytes)}, agent ${format.memory(node.agent_peak_rss_bytes)}` : ""],
    ["Held by", node.memory_group],
    ["Free memory", node.available_bytes === null ? "" : format.memory(node.available_bytes)],
    ["Sent, received", node.uplink_bytes || node.downlink_bytes ? `${format.traffic(node.uplink_bytes)}, ${format.traffic(node.downlink_bytes)}` : ""],
    ["Processor", percent(readings.processor_percent)],
    ["Accelerator", percent(readings.accelerator_percent)],
    ["Power", readings.power_watts === undefined ? "" : [format.watts(readings.power_watts), readings.power_mode].filter(Boolean).join(", ")],
    ["Battery", battery],
    ["Supply", battery || readings.on_mains === undefined || readings.on_mains === null ? "" : readings.on_mains ? "mains" : "battery"],
    ["Throttled", readings.throttled === undefined || readings.throttled === null ? "" : readings.throttled ? readings.throttle_reason || "yes" : "no"],
    ["Protected by", node.security],
  ];
}

function factsView() {
  const list = h("dl", { class: "facts card" });
  const entries = new Map();
  return {
    element: list,
    update(node, run, now) {
      for (const [label, text, kind] of facts(node, run, now)) {
        let entry = entries.get(label);
        if (!entry) {
          const value = h("dd", { class: kind ?? null });
          entry = { value, element: h("div", {}, h("dt", {}, label), value) };
          entries.set(label, entry);
          list.append(entry.element);
        }
        show(entry.element, Boolean(text));
        setCut(entry.value, text);
      }
    },
  };
}

function temperatures() {
  const list = h("ul", { class: "sensors" });
  let seen = "";
  return {
    element: list,
    update(node) {
      const found = Object.entries(node.readings?.temperatures_celsius ?? {});
      const now = JSON.stringify(found);
      show(list, found.length > 0);
      if (now === seen) return;
      seen = now;
      list.replaceChildren(...found.map(([sensor, value]) => h("li", {}, `${sensor} `, h("b", {}, format.celsius(value)))));
    },
  };
}

function headView(name, onCommand) {
  const title = h("h1", { tabindex: "-1", id: "node-title" }, name);
  const badge = h("span", { class: "badge" });
  const detail = h("span", { class: "soft" });
  const exclude = h("button", { type: "button" });
  exclude.addEventListener("click", () => onCommand(exclude.dataset.command, name));
  const notes = h("ul", { class: "notes" });
  const back = h("a", { href: pathOfRun, class: "back", "data-route": true }, "← All nodes");
  const about = h("div", { class: "node-about" }, badge, detail, exclude);
  const element = h("div", { class: "node-head" }, back, h("div", { class: "node-title" }, title, about), notes);
  return {
    element,
    about,
    title,
    update(node, run, session) {
      const doing = derive.activity(node, run);
      setText(badge, doing.text);
      setAttribute(badge, "data-key", doing.key);
      setText(detail, doing.detail);
      const out = run.excluded.includes(name);
      setText(exclude, out ? "Admit again" : "Exclude");
      setAttribute(exclude, "data-command", out ? "readmit" : "exclude");
      show(exclude, session.authorized && run.phase !== "finished");
      const found = derive.attention(node, run).filter((note) => note.text !== "offline");
      const key = JSON.stringify(found);
      if (notes.dataset.seen !== key) {
        notes.dataset.seen = key;
        notes.replaceChildren(...found.map((note) => h("li", { "data-key": note.key }, note.text)));
      }
      show(notes, found.length > 0);
    },
  };
}

/** The page of one node. `load()` gives its history, and is asked again as the node speaks. */
export function nodeView(store, name, { onCommand, load }) {
  const top = headView(name, onCommand);
  const meter = memoryMeter();
  const memory = h("p", { class: "soft" });
  const chart = memoryChart();
  const parts = partsList();
  const sensors = sensorCharts();
  const heat = temperatures();
  const table = historyTable();
  const own = factsView();
  const events = eventsView({ only: name });
  const missing = h("p", { class: "empty" }, "No node of this name has spoken in this run.");
  const failed = h("p", { class: "empty" });
  const now = h("div", { class: "memory-now" }, meter.element, memory);
  const content = h(
    "div",
    { class: "node-body" },
    h("section", { class: "node-memory", "aria-label": "Memory" }, h("div", { class: "section-head" }, h("h2", {}, "Memory"), now), failed, chart.element, parts.element),
    own.element,
    h("section", { class: "node-sensors", "aria-label": "Sensors and training" }, h("div", { class: "section-head" }, h("h2", {}, "Over time"), heat.element, table.toggle), sensors.element, table.element),
    events.element,
  );
  const element = h("article", { class: "node-page", "aria-labelledby": "node-title" }, top.element, missing, content);
  let asked = -Infinity;
  let heard = null;
  let closed = false;

  async function refresh(node) {
    // A node speaks about once a second; its history is drawn at most every two.
    if (node.last_seen_at === heard || performance.now() - asked < 2_000) return;
    asked = performance.now();
    heard = node.last_seen_at;
    try {
      const { history } = await load(name);
      if (closed) return;
      show(failed, false);
      chart.update(history);
      sensors.update(history);
      table.update(history);
    } catch (error) {
      setText(failed, `Its history cannot be had: ${error.message}.`);
      show(failed, true);
    }
  }

  show(failed, false);
  return {
    element,
    focus: () => top.title.focus({ preventScroll: true }),
    update(state) {
      const { run, session } = state;
      const node = run.nodes[name];
      show(missing, !node);
      show(top.about, Boolean(node));
      show(content, Boolean(node));
      events.update(state);
      if (!node) return;
      top.update(node, run, session);
      meter.update(node, derive.memoryShare(node));
      setText(memory, format.memoryOf(derive.usedBytes(node), node.budget_bytes));
      own.update(node, run, store.now());
      parts.update(node);
      heat.update(node);
      refresh(node);
    },
    destroy() {
      closed = true;
      chart.destroy();
      sensors.destroy();
    },
  };
}
