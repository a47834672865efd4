// SPDX-License-Identifier: Apache-2.0
// All runs of a server, and the nodes of its fleet.

import { request, RequestError, sendCookies } from "./api.js";
import { h, head, keyed, setAttribute, setShare, setText, show } from "./dom.js";
import { DASH } from "./format.js";

const EVERY_MS = 2_000;
// Not the one of a run's own dashboard, which would forget a token that is none of its own.
const TOKEN_KEY = "fedkrso-server-token";
const ROLES = ["viewer", "operator", "owner"];
const WORDS = { running: "open", finished: "done", waiting: "paused", stopping: "paused" };
const HOURS = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "short" });

const main = document.getElementById("main");
const bar = document.getElementById("bar");
const notice = document.getElementById("notice");
let session = { name: "", role: "", look: false };
let page = null;

const token = () => sessionStorage.getItem(TOKEN_KEY) ?? "";
const may = (role) => ROLES.indexOf(session.role) >= ROLES.indexOf(role);

// The bar

const summary = h("span", { class: "pill" });
const who = h("button", { type: "button", class: "quiet", on: { click: () => enter() } });
bar.append(
  h("a", { class: "brand", href: "/", "aria-label": "fedkrso, all runs" }, h("img", { src: "/static/icon.svg", alt: "", width: 22, height: 22 })),
  h("div", { class: "bar-run" }, h("a", { class: "run-name", href: "/" }, "Runs"), summary),
  h("div", { class: "bar-actions" }, who),
);

function say(text, good) {
  const dismiss = h("button", { type: "button", class: "quiet", on: { click: () => show(notice, false) } }, "Dismiss");
  notice.replaceChildren(h("div", { class: "answer", "data-key": good ? "good" : "bad" }, h("p", { role: "status" }, text), dismiss));
  show(notice, true);
}

// Who looks

/** Ask for a token; the browser gets a cookie that lets it look, this tab keeps the token for commands. */
function enter() {
  const field = h("input", { type: "password", id: "token", autocomplete: "off", required: true, size: 40 });
  const wrong = h("p", { class: "bad-ink", role: "alert" });
  const form = h(
    "form",
    { class: "card enter", on: { submit: (event) => event.preventDefault() || tryToken(field.value.trim(), wrong) } },
    h("h1", {}, "Who looks?"),
    h("label", { for: "token" }, "Your token; the server's owner gave it to you."),
    h("div", { class: "enter-line" }, field, h("button", { type: "submit", class: "primary" }, "Enter")),
    wrong,
  );
  page = null;
  main.replaceChildren(form);
  field.focus();
}

async function tryToken(value, wrong) {
  try {
    const found = await request("/api/session", { token: value, body: {} });
    if (!found.role) return setText(wrong, "This is not a token of this server.");
    sessionStorage.setItem(TOKEN_KEY, value);
    session = found;
    main.replaceChildren();
    return await turn();
  } catch (error) {
    return setText(wrong, `${error.message}.`);
  }
}

// Runs and nodes

async function stop(run) {
  if (!window.confirm(`Stop ${run} for good? Its nodes are free at once; its folder and report stay.`)) return;
  try {
    say((await request(`/api/runs/${encodeURIComponent(run)}/stop`, { token: token(), body: {} })).said, true);
    await turn();
  } catch (error) {
    say(error.message, false);
  }
}

function runRow() {
  const link = h("a", { class: "run-link" });
  const state = h("span", { class: "pill" });
  const rounds = h("span");
  const fill = h("i");
  const accuracy = h("td", { class: "number" });
  const nodes = h("td", { class: "number" });
  const attention = h("td", { class: "number" });
  const by = h("td");
  const about = h("td", { class: "about" });
  const button = h("button", { type: "button" }, "Stop");
  const meter = h("span", { class: "meter", "aria-hidden": "true" }, fill);
  const element = h("tr", {}, h("th", { scope: "row" }, link), h("td", {}, state), h("td", {}, rounds, meter), accuracy, nodes, attention, by, about, h("td", { class: "number" }, button));
  let name = "";
  button.addEventListener("click", () => stop(name));
  return {
    element,
    update(row) {
      name = row.run;
      setText(link, row.run);
      setAttribute(link, "href", row.method ? `/runs/${encodeURIComponent(row.run)}/` : null);
      setText(state, row.state);
      setAttribute(state, "data-key", row.state === "failed" ? "failed" : WORDS[row.state]);
      setText(rounds, `${row.rounds_done} of ${row.rounds}`);
      setShare(fill, row.rounds ? row.rounds_done / row.rounds : 0);
      setText(accuracy, row.accuracy === null ? DASH : row.accuracy.toFixed(3));
      setText(nodes, row.nodes ? `${row.nodes_online} of ${row.nodes}` : DASH);
      setText(attention, row.attention || DASH);
      setAttribute(attention, "class", row.attention ? "number warn-ink" : "number");
      setText(by, row.by);
      const ended = ["finished", "stopped", "failed"].includes(row.state);
      setText(about, row.words || (ended ? `since ${HOURS.format(row.since * 1000)}` : `submitted ${HOURS.format(row.submitted_at * 1000)}`));
      setAttribute(about, "class", row.state === "failed" ? "about bad-ink" : row.words && !ended ? "about warn-ink" : "about soft");
      setAttribute(button, "aria-label", `Stop ${row.run}`);
      show(button, !ended && row.state !== "stopping" && may("operator") && (row.by === session.name || may("owner")));
    },
  };
}

function nodeRow() {
  const name = h("th", { scope: "row" });
  const place = h("td");
  const able = h("td");
  const declined = h("td", { class: "about soft" });
  return {
    element: h("tr", {}, name, place, able, declined),
    update(node) {
      setText(name, node.node);
      setText(place, node.online ? node.run || "waits for a run" : node.run ? `offline, of ${node.run}` : "offline");
      setAttribute(place, "class", node.online ? (node.run ? null : "soft") : "warn-ink");
      setText(able, node.able.join(", ") || DASH);
      setText(declined, Object.entries(node.declined).map(([run, why]) => `${run}: ${why}`).join("; ") || DASH);
    },
  };
}

const column = (label, kind) => ({ label, class: kind });

function runsPage() {
  const runs = h("tbody");
  const nodes = h("tbody");
  const none = h("p", { class: "empty" }, "No run was submitted yet: fedkrso server submit JOB.toml");
  const nobody = h("p", { class: "empty" }, "No node was heard of yet.");
  const runsTable = h("table", { class: "plain-table" }, head([column("Run"), column("State"), column("Rounds"), column("Accuracy", "number"), column("Nodes", "number"), column("Attention", "number"), column("By"), column("About"), column("")]), runs);
  const nodesTable = h("table", { class: "plain-table" }, head([column("Node"), column("Where"), column("Would take part in"), column("Would not, and why")]), nodes);
  const madeRuns = new Map();
  const madeNodes = new Map();
  const element = h(
    "div",
    { class: "run-page" },
    h("h1", { class: "hidden" }, "All runs"),
    h("section", { "aria-label": "Runs" }, h("div", { class: "card scroll" }, none, runsTable)),
    h("section", { "aria-labelledby": "nodes-title" }, h("div", { class: "section-head" }, h("h2", { id: "nodes-title" }, "Nodes of the fleet")), h("div", { class: "card scroll" }, nobody, nodesTable)),
  );
  return {
    element,
    update(foundRuns, foundNodes) {
      keyed(runs, madeRuns, foundRuns, (row) => row.run, runRow);
      keyed(nodes, madeNodes, foundNodes, (node) => node.node, nodeRow);
      show(none, !foundRuns.length);
      show(runsTable, foundRuns.length > 0);
      show(nobody, !foundNodes.length);
      show(nodesTable, foundNodes.length > 0);
      const running = foundRuns.filter((row) => row.state === "running").length;
      setText(summary, `${running} running · ${foundNodes.filter((node) => node.online).length} nodes online`);
    },
  };
}

async function turn() {
  try {
    session = await request("/api/session", { token: token() });
    if (!session.role && token()) sessionStorage.removeItem(TOKEN_KEY);
    const role = session.role && session.role !== session.name ? `, ${session.role}` : "";
    setText(who, session.name ? session.name + role : "Enter a token");
    if (!session.look) return document.getElementById("token") ? undefined : enter();
    const [{ runs }, { nodes }] = await Promise.all([request("/api/runs", { token: token() }), request("/api/nodes", { token: token() })]);
    if (document.getElementById("token")) return undefined;
    if (!page) main.replaceChildren((page = runsPage()).element);
    page.update(runs, nodes);
    show(summary, true);
    if (notice.dataset.key === "bad") show(notice, false);
    setAttribute(notice, "data-key", null);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    setAttribute(notice, "data-key", "bad");
    notice.replaceChildren(h("p", { class: "lost" }, `${error.message}. Trying again …`));
    show(notice, true);
  }
  return undefined;
}

sendCookies();
show(summary, false);
turn();
setInterval(() => document.hidden || turn(), EVERY_MS);
