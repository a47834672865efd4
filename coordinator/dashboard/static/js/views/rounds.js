// SPDX-License-Identifier: Apache-2.0
// Accuracy, loss and bytes by round: three charts, and the same numbers as a table.

import { chart } from "../charts.js";
import { onNodes, roundTitle } from "../derive.js";
import { h, head, keyed, setAttribute, setText, show } from "../dom.js";
import * as format from "../format.js";

/** Rounds on the axis: some to come, so that a run's first rounds do not fill the whole width. */
const horizon = (total) => (_, __, newest) => [0.5, Math.max(Math.min(total(), Math.max(8, Math.ceil(1.25 * newest))), newest) + 0.5];
const extent = (values) => values.filter((value) => value !== null && value !== undefined);
const atRound = (round) => `round ${round}`;

/** The last value of a column that is known, up to an index. */
function lastKnown(column, index) {
  for (let i = index; i >= 0; i--) if (column[i] !== null) return column[i];
  return null;
}

const reading = (write) => (data, index, latest) => data.slice(1).map((column) => write(latest ? lastKnown(column, index) : column[index]));

function accuracyChart(total) {
  return chart({
    title: "Accuracy",
    x: "round",
    empty: "No round is finished yet.",
    series: [
      { label: "held-out", colour: "c1", fill: "c1-wash", points: true, spanGaps: true },
      { label: "nodes' rows", colour: "c3", points: true, spanGaps: true },
      { label: "worst node", colour: "c3", dash: [2, 3], spanGaps: true },
    ],
    xRange: horizon(total),
    yRange: (_, low, high) => [low === null ? 0 : Math.max(0, Math.floor(10 * low - 0.5) / 10), high === null ? 1 : Math.min(1, Math.ceil(10 * high + 0.2) / 10)],
    tick: (value) => format.percent(value, 0),
    at: atRound,
    read: reading((value) => format.percent(value)),
    sentence: ([rounds, values, theirs, worst]) => {
      const said = (column) => {
        const measured = extent(column);
        const best = Math.max(...measured);
        return `${format.percent(measured.at(-1))} at the last measurement, best ${format.percent(best)} after round ${rounds[column.indexOf(best)]}`;
      };
      const parts = extent(values).length ? [said(values)] : [];
      if (extent(theirs).length) parts.push(`on the nodes' own rows ${said(theirs)}, the worst node at ${format.percent(extent(worst).at(-1))}`);
      return `Accuracy by round: ${parts.join("; ") || "not measured yet"}.`;
    },
  });
}

function lossChart(total) {
  return chart({
    title: "Loss",
    x: "round",
    empty: "No round is finished yet.",
    series: [
      { label: "held-out", colour: "c1", points: true, spanGaps: true },
      { label: "training", colour: "c2", points: true, dash: [4, 3] },
      { label: "nodes' rows", colour: "c3", points: true, spanGaps: true },
    ],
    xRange: horizon(total),
    yRange: (_, low, high) => (low === null ? [0, 1] : [0, high * 1.08 || 1]),
    tick: (value) => String(+value.toFixed(3)),
    at: atRound,
    read: reading(format.loss),
    sentence: ([, held, train, theirs]) => {
      const course = (name, column) => (extent(column).length ? [`${name} ${format.loss(extent(column)[0])} at first, ${format.loss(extent(column).at(-1))} now`] : []);
      const measured = [...course("held-out", held), ...course("nodes' rows", theirs)].join(", ") || "held-out not measured yet";
      return `Loss by round: ${measured}; training ${format.loss(train.at(-1))} in the last round.`;
    },
  });
}

function trafficChart(total) {
  return chart({
    title: "Bytes by round",
    x: "round",
    empty: "No round is finished yet.",
    // The first is drawn as the sum, and the second over it: a stack.
    series: [
      { label: "down", colour: "c7", bars: true },
      { label: "up", colour: "c1", bars: true },
    ],
    xRange: horizon(total),
    yRange: (_, __, high) => [0, high * 1.08 || 1],
    tick: (value) => (value === 0 ? "0" : format.onAxis(format.traffic(value))),
    at: atRound,
    read: ([, both, up], index) => [format.traffic(both[index] - up[index]), format.traffic(up[index])],
    sentence: ([, both, up]) =>
      `Bytes by round: ${format.traffic(up.at(-1))} up and ${format.traffic(both.at(-1) - up.at(-1))} down in the last round.`,
  });
}

const spread = (found) => (found ? `${format.percent(found.least)} to ${format.percent(found.largest)}` : format.DASH);

const COLUMNS = [
  ["round", (row) => row.title],
  ["nodes", (row) => row.participants.length],
  ["accuracy", (row) => format.percent(row.accuracy)],
  ["loss", (row) => format.loss(row.loss)],
  ["training loss", (row) => format.loss(row.train_loss)],
  ["on nodes", (row) => format.percent(onNodes(row)?.accuracy)],
  ["loss on nodes", (row) => format.loss(onNodes(row)?.loss)],
  ["least to largest", (row) => spread(onNodes(row))],
  ["worst node", (row) => onNodes(row)?.worst || format.DASH],
  ["up", (row) => format.traffic(row.uplink_bytes)],
  ["down", (row) => format.traffic(row.downlink_bytes)],
  ["time", (row) => format.duration(row.seconds)],
  ["largest norm", (row) => (Object.keys(row.norms).length ? Math.max(...Object.values(row.norms)).toPrecision(3) : format.DASH)],
  ["clipped", (row) => Object.keys(row.clipped).join(", ") || format.DASH],
  ["capped", (row) => Object.keys(row.capped).join(", ") || format.DASH],
  ["behind", (row) => Object.entries(row.stale).map(([node, [behind]]) => `${node} ${behind}`).join(", ") || format.DASH],
];

function roundsTable() {
  const body = h("tbody");
  const rows = new Map();
  const table = h(
    "table",
    { class: "numbers" },
    h("caption", { class: "hidden" }, "Every finished round"),
    head(COLUMNS.map(([label]) => ({ label }))),
    body,
  );
  const element = h("div", { class: "card scroll", role: "region", "aria-label": "Rounds as a table", tabindex: "0", id: "rounds-table" }, table);
  const make = () => {
    const cells = COLUMNS.map((_, i) => (i === 0 ? h("th", { scope: "row" }) : h("td")));
    return { element: h("tr", {}, ...cells), update: (row) => COLUMNS.forEach(([, write], i) => setText(cells[i], write(row))) };
  };
  const titled = (run) => run.rows.map((row) => ({ ...row, title: roundTitle(run, row.round) }));
  return { element, update: (run) => keyed(body, rows, titled(run).reverse(), (row) => row.round, make) };
}

/** The section of rounds. */
export function roundsView() {
  let total = 1;
  let open = false;
  let seen = null;
  const charts = [accuracyChart(() => total), lossChart(() => total), trafficChart(() => total)];
  const table = roundsTable();
  const toggle = h("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": "rounds-table" }, "Show as a table");
  const element = h(
    "section",
    { class: "rounds", "aria-labelledby": "rounds-title" },
    h("div", { class: "section-head" }, h("h2", { id: "rounds-title", tabindex: "-1" }, "Rounds"), toggle),
    h("div", { class: "charts" }, ...charts.map((one) => one.element)),
    table.element,
  );
  const openTable = (value) => {
    open = value;
    show(table.element, open);
    setAttribute(toggle, "aria-expanded", String(open));
    setText(toggle, open ? "Hide the table" : "Show as a table");
  };
  toggle.addEventListener("click", () => openTable(!open));
  openTable(false);

  return {
    element,
    update({ run }) {
      const now = JSON.stringify([run.total_rounds, run.rows]);
      if (now === seen) return;
      seen = now;
      total = run.total_rounds;
      const rounds = run.rows.map((row) => row.round);
      const [accuracy, loss, traffic] = charts;
      const theirs = run.rows.map(onNodes);
      const ofThem = (key) => theirs.map((found) => found?.[key] ?? null);
      accuracy.update([rounds, run.rows.map((row) => row.accuracy), ofThem("accuracy"), ofThem("least")]);
      loss.update([rounds, run.rows.map((row) => row.loss), run.rows.map((row) => row.train_loss), ofThem("loss")]);
      traffic.update([rounds, run.rows.map((row) => row.uplink_bytes + row.downlink_bytes), run.rows.map((row) => row.uplink_bytes)]);
      show(toggle, rounds.length > 0);
      table.update(run);
    },
    destroy: () => charts.forEach((one) => one.destroy()),
  };
}
