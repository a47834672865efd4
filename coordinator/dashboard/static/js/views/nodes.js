// SPDX-License-Identifier: Apache-2.0
// A row per node: updated in place, sorted, filtered, walked with the keyboard.

import * as derive from "../derive.js";
import { h, keyed, setAttribute, setCut, setShare, setText, show } from "../dom.js";
import * as format from "../format.js";
import { pathOfNode } from "../store.js";

// Memory and last words change every second: rows that change places as often could not be read.
const RESORT_MS = 5_000;

const COLUMNS = [
  { label: "Node", sort: "name", class: "col-name" },
  { label: "State", sort: "state", class: "col-state" },
  { label: "Model", class: "col-model" },
  { label: "Memory", sort: "memory", class: "col-memory" },
  { label: "Heat", class: "col-heat number" },
  { label: "Power", class: "col-power number" },
  { label: "Last word", sort: "seen", class: "col-seen number" },
];

/** A bar of memory against a budget, with a tick at the highest use so far. */
export function memoryMeter() {
  const fill = h("i", {});
  const peak = h("span", { class: "peak" });
  const element = h("div", { class: "meter", role: "meter", "aria-label": "share of the budget", "aria-valuemin": "0", "aria-valuemax": "100" }, fill, peak);
  return {
    element,
    update(node, share) {
      const level = share === null ? "" : share > 1 ? "bad" : share > derive.TIGHT_SHARE ? "warn" : "";
      setAttribute(element, "data-level", level);
      setAttribute(element, "aria-valuenow", share === null ? 0 : Math.min(100, Math.round(100 * share)));
      setAttribute(element, "aria-valuetext", share === null ? "unknown" : format.percent(share, 0));
      setShare(fill, share);
      const highest = node.budget_bytes > 0 ? node.peak_bytes / node.budget_bytes : 0;
      show(peak, highest > 0);
      const left = `${Math.min(100, 100 * highest).toFixed(1)}%`;
      if (peak.style.left !== left) peak.style.left = left;
      setAttribute(element, "title", highest > 0 ? `peak ${format.memory(node.peak_bytes)}` : null);
    },
  };
}

function makeRow(store) {
  const link = h("a", { class: "node-link", "data-route": true });
  const device = h("span", { class: "sub device" });
  const brief = h("span", { class: "sub brief" });
  const badge = h("span", { class: "badge" });
  const detail = h("span", { class: "sub" });
  const version = h("span", {});
  const digest = h("span", { class: "sub" });
  const meter = memoryMeter();
  const memory = h("span", { class: "sub" });
  const heat = h("span", {});
  const throttled = h("span", { class: "sub" });
  const power = h("span", {});
  const mode = h("span", { class: "sub" });
  const seen = h("span", {});
  const cells = [[link, device, brief], [badge, detail], [version, digest], [meter.element, memory], [heat, throttled], [power, mode], [seen]];
  const made = cells.map((content, i) => h(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: COLUMNS[i].class }, ...content));
  const element = h("tr", {}, ...made);
  return {
    element,
    update(row) {
      const { node, activity: doing, notes } = row;
      const worst = notes[0];
      setText(link, row.name);
      setAttribute(link, "href", pathOfNode(row.name));
      setCut(device, node.device);
      setText(badge, doing.text);
      setAttribute(badge, "data-key", doing.key);
      const note = worst && worst.text !== doing.text ? worst.text : doing.detail;
      setCut(detail, note);
      setAttribute(detail, "data-key", worst && worst.text === note ? worst.key : null);
      setCut(brief, note ? `${doing.text}, ${note}` : doing.text);
      setAttribute(brief, "data-key", worst?.key ?? null);
      setText(version, node.version < 0 ? format.DASH : `version ${node.version}`);
      setText(digest, row.digest.text);
      setAttribute(digest, "data-key", row.digest.key);
      meter.update(node, row.share);
      setText(memory, node.online || node.budget_bytes > 0 ? format.memoryOf(row.used, node.budget_bytes) : format.DASH);
      setText(heat, format.celsius(row.celsius));
      setText(throttled, node.readings?.throttled ? "throttled" : "");
      setAttribute(throttled, "data-key", "warn");
      setText(power, format.watts(row.watts));
      setCut(mode, node.readings?.power_mode ?? "");
      setText(seen, format.ago(node.last_seen_at === null ? null : store.now() - node.last_seen_at));
      setAttribute(seen, "title", format.moment(node.last_seen_at) || null);
      setAttribute(element, "data-off", node.online ? null : true);
    },
  };
}

function heading(column, store) {
  if (!column.sort) return h("th", { scope: "col", class: column.class }, column.label);
  const click = () => {
    const { sort, dir } = store.state.list;
    const first = derive.SORTS[column.sort].first;
    store.setList({ sort: column.sort, dir: sort === column.sort ? (dir === "asc" ? "desc" : "asc") : first });
  };
  const button = h("button", { type: "button", class: "sort", on: { click } }, column.label, h("span", { class: "arrow", "aria-hidden": "true" }));
  return h("th", { scope: "col", class: column.class, "data-sort": column.sort }, button);
}

function toolbar(store) {
  const filter = h("input", {
    type: "search",
    id: "filter",
    placeholder: "Filter by name, device, reason",
    "aria-label": "Filter nodes by name, device, state or reason",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: "200",
    on: { input: () => store.setList({ q: filter.value }) },
  });
  const all = h("button", { type: "button", on: { click: () => store.setList({ show: "all" }) } });
  const needy = h("button", { type: "button", on: { click: () => store.setList({ show: "attention" }) } });
  const sorts = h(
    "select",
    { "aria-label": "Sort by", on: { change: () => store.setList({ sort: sorts.value, dir: derive.SORTS[sorts.value].first }) } },
    ...Object.entries(derive.SORTS).map(([value, { label }]) => h("option", { value }, `by ${label}`)),
  );
  const element = h(
    "div",
    { class: "toolbar" },
    h("div", { class: "choice", role: "group", "aria-label": "Which nodes" }, all, needy),
    h("label", { class: "narrow-only" }, sorts),
    h("div", { class: "filter" }, filter, h("kbd", { "aria-hidden": "true" }, "/")),
  );
  return {
    element,
    filter,
    update(list, total, attention) {
      if (filter.value !== list.q) filter.value = list.q;
      if (sorts.value !== list.sort) sorts.value = list.sort;
      setText(all, `All ${total}`);
      setText(needy, `Need attention ${attention}`);
      setAttribute(all, "aria-pressed", String(list.show === "all"));
      setAttribute(needy, "aria-pressed", String(list.show === "attention"));
    },
  };
}

const nothing = (total, list) => {
  if (total === 0) return "No node has spoken yet. Start one with: fedkrso client run NODE.toml";
  return list.show === "attention" && !list.q ? "No node needs attention." : "No node is like that.";
};

/** The section of nodes. */
export function nodesView(store) {
  const tools = toolbar(store);
  const headings = COLUMNS.map((column) => heading(column, store));
  const body = h("tbody");
  const caption = h("caption", { class: "hidden" }, "Nodes of the run");
  const table = h("table", { class: "nodes" }, caption, h("thead", {}, h("tr", {}, ...headings)), body);
  const empty = h("p", { class: "empty" });
  const element = h(
    "section",
    { class: "nodes-section", "aria-labelledby": "nodes-title" },
    h("div", { class: "section-head" }, h("h2", { id: "nodes-title", tabindex: "-1" }, "Nodes"), tools.element),
    h("div", { class: "card" }, table, empty),
  );
  const elements = new Map();
  const make = () => makeRow(store);
  let order = new Map();
  let ordered = { at: -Infinity, key: "" };

  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("a") && !String(getSelection())) row.querySelector("a").click();
  });

  /** Rows in order; by a value that changes all the time they stay in place for a while, and while somebody walks through them. */
  function inOrder(rows, list) {
    const key = `${list.sort} ${list.dir} ${list.show} ${list.q}`;
    const busy = body.contains(document.activeElement) || performance.now() - ordered.at < RESORT_MS;
    if (derive.SORTS[list.sort].live && key === ordered.key && busy && rows.every((row) => order.has(row.name))) {
      return [...rows].sort((a, b) => order.get(a.name) - order.get(b.name));
    }
    const found = derive.sorted(rows, list.sort, list.dir);
    order = new Map(found.map((row, i) => [row.name, i]));
    ordered = { at: performance.now(), key };
    return found;
  }

  return {
    element,
    filter: tools.filter,
    /** Move the focus `by` rows; from outside, to the first or last. */
    walk(by) {
      const links = [...body.querySelectorAll("a.node-link")];
      const at = links.indexOf(document.activeElement);
      const next = at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + by));
      links[next]?.focus();
    },
    focusNode: (name) => elements.get(name)?.element.querySelector("a").focus(),
    update({ run, list }) {
      const all = Object.values(run.nodes).map((node) => derive.row(node, run));
      tools.update(list, all.length, all.filter((row) => row.notes.length).length);
      const rows = inOrder(derive.matching(all, list.q, list.show === "attention"), list);
      keyed(body, elements, rows, (row) => row.name, make);
      for (const th of headings) {
        const own = th.dataset.sort === list.sort;
        if (th.dataset.sort) setAttribute(th, "aria-sort", own ? (list.dir === "asc" ? "ascending" : "descending") : null);
      }
      setText(empty, rows.length ? "" : nothing(all.length, list));
      show(empty, rows.length === 0);
      show(table, rows.length > 0);
      show(tools.element, all.length > 0);
    },
  };
}
