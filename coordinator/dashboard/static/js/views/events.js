// SPDX-License-Identifier: Apache-2.0
// What happened, with reasons: newest first.

import { h, keyed, setAttribute, setText, show } from "../dom.js";
import * as format from "../format.js";
import { pathOfNode } from "../store.js";

/** Kinds that are somebody's fault or loss; the others are notes. */
const GRAVE = new Set(["digest", "refused", "revoked", "disk", "failed"]);

const MOST = 200;
const keyOf = (event) => `${event.at} ${event.kind} ${event.node} ${event.text}`;

const maker = (only) => (event) => {
  const time = h("time", { datetime: new Date(event.at * 1000).toISOString(), title: format.moment(event.at) }, format.clock(event.at));
  const kind = h("span", { class: `kind ${GRAVE.has(event.kind) ? "grave" : ""}` }, event.kind);
  const node = event.node && event.node !== only ? h("a", { href: pathOfNode(event.node), "data-route": true }, event.node) : null;
  const round = event.round > 0 ? h("span", { class: "soft" }, `round ${event.round}`) : null;
  const line = h("p", { class: "event-head" }, time, kind, node, round);
  return { element: h("li", {}, line, h("p", { class: "event-text" }, event.text)), update() {} };
};

/** A list of events; `only` names a node whose events alone are shown. */
export function eventsView({ only = null } = {}) {
  const list = h("ol", { class: "events" });
  const empty = h("p", { class: "empty" }, only ? "Nothing to tell of this node." : "Nothing has happened that needs a word.");
  const number = h("span", { class: "soft" });
  const id = only ? "node-events-title" : "events-title";
  const scroll = h("div", { class: "events-scroll", role: "region", "aria-label": "Events, newest first", tabindex: "0" }, list, empty);
  const element = h(
    "section",
    { class: `events-section ${only ? "plain" : ""}`, "aria-labelledby": id },
    h("div", { class: "section-head" }, h("h2", { id, tabindex: "-1" }, "Events"), number),
    h("div", { class: "card" }, scroll),
  );
  const elements = new Map();
  let seen = null;
  return {
    element,
    update({ events: all }) {
      if (all === seen) return;
      seen = all;
      const events = all.filter((event) => only === null || event.node === only).slice(-MOST);
      keyed(list, elements, [...events].reverse(), keyOf, maker(only));
      show(empty, events.length === 0);
      show(list, events.length > 0);
      setAttribute(scroll, "tabindex", events.length ? "0" : null);
      setText(number, events.length === MOST ? `the last ${MOST}` : "");
    },
  };
}
