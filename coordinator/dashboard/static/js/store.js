// SPDX-License-Identifier: Apache-2.0
// The page's state, in one place. Views draw it; at most once a frame.

import { BASE } from "./api.js";
import { SORTS } from "./derive.js";

const TOKEN_KEY = "fedkrso-token";
const DEFAULTS = { sort: "name", dir: "asc", show: "all", q: "" };

export class Store {
  constructor() {
    this.state = {
      run: null,
      /** Server's clock less this machine's, in seconds. */
      skew: 0,
      connection: { live: false, since: Date.now() / 1000, ever: false },
      /** As /api/session answers. */
      session: { control: false, authorized: false, name: "" },
      /** The last answer to a command: {text, good}, or null. */
      said: null,
      /** All that is known of what happened, oldest first. */
      events: [],
      node: nodeOfPath(),
      list: listOfHash(),
    };
    this.listeners = new Set();
    this.pending = false;
  }

  /** Change some of the state; views hear of it in the next frame. */
  set(changes) {
    Object.assign(this.state, changes);
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      performance.mark("draw");
      for (const listener of this.listeners) listener(this.state);
      performance.measure("fedkrso-draw", "draw");
    });
  }

  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Seconds since the epoch by the coordinator's clock. */
  now() {
    return Date.now() / 1000 + this.state.skew;
  }

  /** Change how the list is sorted and filtered, and remember it in the address. */
  setList(changes) {
    const list = { ...this.state.list, ...changes };
    history.replaceState(history.state, "", location.pathname + location.search + hashOf(list));
    this.set({ list });
  }

  /** The operator's token, for this tab only. */
  get token() {
    return sessionStorage.getItem(TOKEN_KEY) ?? "";
  }

  set token(value) {
    if (value) sessionStorage.setItem(TOKEN_KEY, value);
    else sessionStorage.removeItem(TOKEN_KEY);
  }
}

/** The node that a path is about, or null for the run. */
export function nodeOfPath(path = location.pathname) {
  const found = /^\/nodes\/([^/]+)$/.exec(path.slice(BASE.length));
  try {
    return found ? decodeURIComponent(found[1]) : null;
  } catch {
    return null;
  }
}

export const pathOfRun = `${BASE}/`;
export const pathOfNode = (node) => `${BASE}/nodes/${encodeURIComponent(node)}`;

/** Sorting and filtering from the address; what makes no sense is left out. */
export function listOfHash(hash = location.hash) {
  const given = new URLSearchParams(hash.slice(1));
  const list = { ...DEFAULTS };
  if (given.get("sort") in SORTS) list.sort = given.get("sort");
  if (["asc", "desc"].includes(given.get("dir"))) list.dir = given.get("dir");
  if (["all", "attention"].includes(given.get("show"))) list.show = given.get("show");
  list.q = (given.get("q") ?? "").slice(0, 200);
  return list;
}

export function hashOf(list) {
  const kept = Object.entries(list).filter(([key, value]) => value !== DEFAULTS[key]);
  return kept.length ? `#${new URLSearchParams(kept)}` : "";
}
