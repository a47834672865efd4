// SPDX-License-Identifier: Apache-2.0
// Brings it together: the stream into the store, the store into views, addresses and keys into the store, commands to the coordinator.

import { request, RequestError, Stream } from "./api.js";
import * as derive from "./derive.js";
import { h, setText } from "./dom.js";
import { listOfHash, nodeOfPath, pathOfRun, Store } from "./store.js";
import { barView } from "./views/bar.js";
import { confirm, controlDialog, helpDialog } from "./views/dialogs.js";
import { eventsView } from "./views/events.js";
import { nodesView } from "./views/nodes.js";
import { nodeView } from "./views/node.js";
import { roundsView } from "./views/rounds.js";
import { summaryView } from "./views/summary.js";

const AGES_MS = 1_000;

const store = new Store();
const main = document.getElementById("main");
const announcer = document.getElementById("announcer");
const announce = (text) => text && setText(announcer, text);
let page = null;

// Commands

const QUESTIONS = {
  end_round: () => ["End the round now?", "It closes with the updates that are in; the others come too late for it.", "End round"],
  exclude: (node) => [`Exclude ${node}?`, "It is not invited from the next round on, and its missing update is not waited for. It can be admitted again.", "Exclude"],
};

async function command(name, node = "") {
  if (QUESTIONS[name] && !(await confirm(...QUESTIONS[name](node)))) return;
  try {
    const { said } = await request("/api/commands", { token: store.token, body: node ? { command: name, node } : { command: name } });
    store.set({ said: { text: said, good: true } });
  } catch (error) {
    store.set({ said: { text: error.message, good: false } });
    if (error instanceof RequestError && error.status === 401) forget();
  }
}

async function learnSession() {
  const session = await request("/api/session", { token: store.token });
  if (store.token && !session.authorized) store.token = "";
  store.set({ session });
  return session;
}

async function tryToken(token) {
  try {
    const session = await request("/api/session", { token });
    if (!session.authorized) return "This is not the token.";
    store.token = token;
    store.set({ session });
    return "";
  } catch (error) {
    return `${error.message}.`;
  }
}

function forget() {
  store.token = "";
  store.set({ session: { ...store.state.session, authorized: false, name: "" } });
}

// Pages

function runPage() {
  const nodes = nodesView(store);
  const views = [
    summaryView(store, () => {
      store.setList({ show: "attention" });
      document.getElementById("nodes-title").scrollIntoView();
    }),
    roundsView(),
    eventsView(),
    nodes,
  ];
  const [summary, rounds, events] = views;
  const jump = h("nav", { class: "jump", "aria-label": "On this page" }, ...["rounds", "events", "nodes"].map((id) => h("a", { href: `#${id}-title` }, id)));
  jump.addEventListener("click", (event) => {
    // The part after # belongs to the list: jump without touching it.
    event.preventDefault();
    const target = document.getElementById(event.target.hash?.slice(1) ?? "");
    target?.scrollIntoView();
    target?.focus({ preventScroll: true });
  });
  const title = h("h1", { class: "hidden", tabindex: "-1" }, "The run");
  const element = h("div", { class: "run-page" }, title, summary.element, jump, h("div", { class: "top" }, rounds.element, events.element), nodes.element);
  return {
    node: null,
    element,
    nodes,
    focus: () => title.focus({ preventScroll: true }),
    title: ({ run }) => `${derive.shownRound(run)}/${run.total_rounds} ${derive.phase(run).text} · ${run.run}`,
    update: (state) => views.forEach((view) => view.update(state)),
    destroy: () => rounds.destroy(),
  };
}

function pageOf(node) {
  if (node === null) return runPage();
  const load = (name) => request(`/api/nodes/${encodeURIComponent(name)}`);
  return { ...nodeView(store, node, { onCommand: command, load }), node, title: ({ run }) => `${node} · ${run.run}` };
}

function draw(state) {
  if (!state.run) return;
  const from = page;
  if (!page || page.node !== state.node) {
    page?.destroy();
    page = pageOf(state.node);
    main.replaceChildren(page.element);
    document.body.dataset.page = state.node === null ? "run" : "node";
  }
  page.update(state);
  if (document.title !== page.title(state)) document.title = page.title(state);
  if (from && from !== page) arrive(from);
}

/** The focus goes where the reader goes: to the node's name, and back to its row. */
function arrive(from) {
  scrollTo(0, page.node === null ? (history.state?.scroll ?? 0) : 0);
  page.focus();
  if (page.node === null && from.node !== null) page.nodes.focusNode(from.node);
}

function go(path, { back = false } = {}) {
  if (back && history.state?.inside) return history.back();
  history.replaceState({ ...history.state, scroll: scrollY }, "");
  const list = location.hash;
  history.pushState({ inside: true }, "", path + list);
  return store.set({ node: nodeOfPath() });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-route]");
  if (!link || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  const path = new URL(link.href).pathname;
  go(path, { back: path === pathOfRun && store.state.node !== null });
});
addEventListener("popstate", () => store.set({ node: nodeOfPath(), list: listOfHash() }));
addEventListener("hashchange", () => store.set({ list: listOfHash() }));
history.scrollRestoration = "manual";

// Keys

function escape() {
  const filter = page?.nodes?.filter;
  if (store.state.node !== null) return go(pathOfRun, { back: true });
  if (store.state.list.q) store.setList({ q: "" });
  return filter === document.activeElement && filter.blur();
}

const KEYS = {
  "/": () => page?.nodes?.filter.focus(),
  "?": helpDialog,
  a: () => page?.nodes && store.setList({ show: store.state.list.show === "all" ? "attention" : "all" }),
  ArrowDown: () => page?.nodes?.walk(1),
  ArrowUp: () => page?.nodes?.walk(-1),
  j: () => page?.nodes?.walk(1),
  k: () => page?.nodes?.walk(-1),
  Escape: escape,
};

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches?.("input, select, textarea");
  const walking = event.target.closest?.(".nodes tbody") || event.target.id === "filter";
  if (typing && event.key !== "Escape" && !(walking && event.key === "ArrowDown")) return;
  // Arrows scroll the page and its regions, except where rows are walked through.
  if (event.key.startsWith("Arrow") && !walking) return;
  const act = KEYS[event.key];
  if (!act || !store.state.run) return;
  event.preventDefault();
  act();
});

// Start

const bar = barView(store, document.getElementById("bar"), document.getElementById("notice"), {
  onControl: () => controlDialog(store.state.session, tryToken, forget),
  onHelp: helpDialog,
  onCommand: command,
});
store.subscribe((state) => bar.update(state));
store.subscribe(draw);
bar.update(store.state);

async function learnEvents() {
  const { events } = await request("/api/events?most=500");
  store.set({ events: derive.mergedEvents(store.state.events, events) });
}

new Stream("/api/stream?changes=1", {
  onRun(run) {
    announce(derive.announcement(store.state.run, run));
    const events = derive.mergedEvents(store.state.events, run.events);
    store.set({ run, events, skew: run.written_at ? run.written_at - Date.now() / 1000 : 0 });
  },
  onConnection(connection) {
    const { ever } = store.state.connection;
    if (ever) announce(connection.live ? "The connection is back." : "The connection is lost.");
    store.set({ connection: { ...connection, ever: ever || connection.live } });
    if (!connection.live) return;
    // A coordinator that came back may have been started in another way, and more may have happened than a view tells.
    Promise.allSettled([learnSession(), learnEvents()]);
  },
});
// Ages grow although nothing comes.
setInterval(() => document.hidden || store.set({}), AGES_MS);
