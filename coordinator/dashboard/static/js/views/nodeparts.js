// SPDX-License-Identifier: Apache-2.0
// Parts of a node's page that draw its history: memory by component, planned parts, sensors, and all of it as a table.

import { chart } from "../charts.js";
import { h, head, setAttribute, setShare, setText, show } from "../dom.js";
import * as format from "../format.js";

// In the order and with the names of fedcore.device.memoryplan.PART_NAMES (a test compares them).
export const PARTS = {
  runtime_bytes: "runtime base",
  weights_bytes: "layer weights",
  embeddings_bytes: "embeddings and norms",
  subspaces_bytes: "learned state and projections",
  optimiser_bytes: "optimiser",
  buffer_bytes: "dequantisation buffer",
  cache_bytes: "KV cache",
  activations_bytes: "saved activations",
  logits_bytes: "logits",
  working_bytes: "temporaries",
  slack_bytes: "allocator and libraries",
};

const LEAST_SECONDS = 60;
const overTime = (_, low, high) => (low === null ? [0, LEAST_SECONDS] : [Math.min(low, high - LEAST_SECONDS), high]);
const any = (column) => column.some((value) => value !== null);
const powerOfTwoSteps = Array.from({ length: 24 }, (_, i) => 2 ** (20 + i));

/** Stack columns on each other; a moment without a worker counts as nothing of it, a moment without the agent is a gap. */
function stacked(history) {
  const { agent_bytes: agent, worker_anonymous_bytes: own, worker_file_bytes: files } = history;
  const one = agent.map((value) => value);
  const two = agent.map((value, i) => (value === null ? null : value + (own[i] ?? 0)));
  const three = agent.map((value, i) => (value === null ? null : value + (own[i] ?? 0) + (files[i] ?? 0)));
  return [three, two, one];
}

/** Memory by component over time against the budget. An accelerator's own memory is not in the budget, so it is a line of its own. */
export function memoryChart() {
  let history = null;
  const drawn = chart({
    title: "Memory by component",
    x: "time",
    height: 240,
    empty: "No measurement has come yet.",
    // From the top of the stack down, each filled to the one below it.
    series: [
      { label: "worker, file pages", colour: "c3", fill: "c3-wash" },
      { label: "worker, its own", colour: "c1", fill: "c1-fill" },
      { label: "agent", colour: "c4", fill: "c4-fill" },
      { label: "accelerator’s memory, apart", colour: "c5", dash: [6, 3] },
      { label: "budget", colour: "bad", dash: [3, 3], width: 1.5 },
    ],
    bands: [{ series: [1, 2] }, { series: [2, 3] }],
    xRange: overTime,
    yRange: (_, __, high) => [0, high ? high * 1.06 : 1],
    incrs: powerOfTwoSteps,
    tick: (value) => (value === 0 ? "0" : format.onAxis(format.memory(value))),
    at: format.clock,
    read: (_, i) =>
      ["worker_file_bytes", "worker_anonymous_bytes", "agent_bytes", "accelerator_bytes", "budget_bytes"].map((key) => format.memory(history[key][i])),
    sentence: () => {
      const last = (key) => format.memory(history[key].at(-1));
      return (
        `Memory over time: now agent ${last("agent_bytes")}, worker's own ${last("worker_anonymous_bytes")}, ` +
        `worker's file pages ${last("worker_file_bytes")}, accelerator ${last("accelerator_bytes")}, budget ${last("budget_bytes")}.`
      );
    },
  });
  return {
    ...drawn,
    update(given) {
      history = given;
      const budget = given.budget_bytes.map((value) => value || null);
      drawn.update([given.at, ...stacked(given), given.accelerator_bytes, budget]);
    },
  };
}

/** Where the plan says that the worker's memory goes, at its peak. */
export function partsList() {
  const list = h("dl", { class: "parts" });
  const total = h("span", { class: "soft" });
  const element = h("section", { class: "card parts-card", "aria-labelledby": "parts-title" }, h("h3", { id: "parts-title" }, "Planned peak of the worker ", total), list);
  let seen = "";
  return {
    element,
    update(node) {
      const now = JSON.stringify(node.components);
      show(element, Boolean(node.components));
      if (now === seen || !node.components) return;
      seen = now;
      const sum = Object.keys(PARTS).reduce((all, key) => all + (node.components[key] ?? 0), 0);
      setText(total, format.memory(sum));
      const rows = Object.entries(PARTS).filter(([key]) => node.components[key] > 0);
      list.replaceChildren(
        ...rows.map(([key, label]) => {
          const fill = h("i", {});
          setShare(fill, node.components[key] / sum);
          return h("div", {}, h("dt", {}, label), h("dd", {}, h("span", { class: "meter", "aria-hidden": "true" }, fill), h("b", {}, format.memory(node.components[key]))));
        }),
      );
    },
  };
}

function line(title, column, colour, write, tick, { zero = false } = {}) {
  const drawn = chart({
    title,
    x: "time",
    height: 130,
    empty: "Not measured.",
    series: [{ label: "", colour }],
    xRange: overTime,
    yRange: (_, low, high) => {
      if (low === null) return [0, 1];
      const room = Math.max((high - low) * 0.15, Math.abs(high) * 0.02, 0.01);
      return [zero ? 0 : low - room, high + room];
    },
    tick,
    at: format.clock,
    read: ([, values], i, latest) => [write(latest ? (values.findLast((value) => value !== null) ?? null) : values[i])],
    sentence: ([, values]) => {
      const found = values.filter((value) => value !== null);
      return `${title} over time: now ${write(found.at(-1) ?? null)}, between ${write(Math.min(...found))} and ${write(Math.max(...found))}.`;
    },
  });
  return { ...drawn, update: (history) => drawn.update(any(history[column]) ? [history.at, history[column]] : [[], []]) };
}

/** Heat, power and loss over time. */
export function sensorCharts() {
  const charts = [
    line("Hottest sensor", "hottest_celsius", "c6", format.celsius, (value) => `${+value.toFixed(1)} °C`),
    line("Power", "power_watts", "c1", format.watts, (value) => `${+value.toFixed(1)} W`, { zero: true }),
    line("Training loss", "loss", "c2", format.loss, (value) => String(+value.toFixed(3)), { zero: true }),
  ];
  return {
    element: h("div", { class: "charts" }, ...charts.map((one) => one.element)),
    update: (history) => charts.forEach((one) => one.update(history)),
    destroy: () => charts.forEach((one) => one.destroy()),
  };
}

const COLUMNS = [
  ["time", "at", format.clock],
  ["agent", "agent_bytes", format.memory],
  ["worker, its own", "worker_anonymous_bytes", format.memory],
  ["worker, file pages", "worker_file_bytes", format.memory],
  ["accelerator", "accelerator_bytes", format.memory],
  ["free on the device", "available_bytes", format.memory],
  ["budget", "budget_bytes", format.memory],
  ["hottest", "hottest_celsius", format.celsius],
  ["power", "power_watts", format.watts],
  ["step", "step", (value) => (value === null ? format.DASH : String(value))],
  ["loss", "loss", format.loss],
];

/** The history as a table, newest first; drawn only while it is open. */
export function historyTable() {
  const body = h("tbody");
  const table = h("table", { class: "numbers" }, h("caption", { class: "hidden" }, "Measurements, newest first"), head(COLUMNS.map(([label]) => ({ label }))), body);
  const element = h("div", { class: "card scroll", role: "region", "aria-label": "Measurements as a table", tabindex: "0", id: "history-table", hidden: true }, table);
  const toggle = h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": "history-table" }, "Show as a table");
  let history = null;
  const fill = () => {
    if (element.hidden || !history) return;
    const indices = history.at.map((_, i) => history.at.length - 1 - i);
    body.replaceChildren(
      ...indices.map((i) => h("tr", {}, ...COLUMNS.map(([, key, write], n) => h(n === 0 ? "th" : "td", { scope: n === 0 ? "row" : null }, write(history[key][i]))))),
    );
  };
  toggle.addEventListener("click", () => {
    show(element, element.hidden);
    setAttribute(toggle, "aria-expanded", String(!element.hidden));
    setText(toggle, element.hidden ? "Show as a table" : "Hide the table");
    fill();
  });
  return {
    element,
    toggle,
    update(given) {
      history = given;
      show(toggle, given.at.length > 0);
      fill();
    },
  };
}
