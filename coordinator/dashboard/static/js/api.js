// SPDX-License-Identifier: Apache-2.0
// The coordinator's HTTP interface: requests with one-line errors, and the stream of views that connects again by itself.

/** Where the run's pages are: at the root of its own dashboard, or below its name at a server of many runs. */
export const BASE = /^\/runs\/[^/]+/.exec(location.pathname)?.[0] ?? "";

// At a server of many runs a cookie lets look; a run's own dashboard has none.
let credentials = BASE ? "same-origin" : "omit";

/** Send this origin's cookies with every request. */
export function sendCookies() {
  credentials = "same-origin";
}

const TIMEOUT_MS = 10_000;
// The coordinator itself gives up on a command after 30 s, and says so.
const COMMAND_TIMEOUT_MS = 35_000;
const SILENCE_MS = 30_000;
const RETRY_MS = [1_000, 2_000, 4_000, 8_000, 15_000];

/** A request that the coordinator refused or that did not reach it; `message` is one line for a person. */
export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** JSON of a path; `token` is sent as a bearer, `body` as JSON by POST. */
export async function request(path, { token = "", body = null } = {}) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(BASE + path, {
      method: body ? "POST" : "GET",
      headers,
      body: body ? JSON.stringify(body) : undefined,
      cache: "no-store",
      credentials,
      signal: AbortSignal.timeout(body ? COMMAND_TIMEOUT_MS : TIMEOUT_MS),
    });
  } catch (error) {
    throw new RequestError(error.name === "TimeoutError" ? "the coordinator does not answer" : "the coordinator cannot be reached", 0);
  }
  const data = await response.json().catch(() => null);
  if (!response.ok) throw new RequestError(data?.error ?? `the coordinator answers ${response.status}`, response.status);
  return data;
}

/** A run with what is new in it: rows by their round, nodes by their name. */
function merged(run, news) {
  const rows = new Map([...run.rows, ...news.rows].map((row) => [row.round, row]));
  return { ...news, rows: [...rows.values()], nodes: { ...run.nodes, ...news.nodes } };
}

/**
 * The stream of views. `onRun(view)` gets each; `onConnection({live, since})` hears when the connection comes and goes.
 * EventSource connects again after a network error, but not after an error status (a proxy's 502), and does not notice
 * a peer that is silently gone: both are done here.
 */
export class Stream {
  constructor(path, { onRun, onConnection }) {
    this.path = path;
    this.onRun = onRun;
    this.onConnection = onConnection;
    this.failures = 0;
    this.heardAt = performance.now();
    this.live = false;
    this.open();
    setInterval(() => this.check(), SILENCE_MS / 3);
    addEventListener("online", () => this.again(0));
    addEventListener("offline", () => this.lost());
    document.addEventListener("visibilitychange", () => document.hidden || this.check());
  }

  open() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = new EventSource(BASE + this.path);
    this.source.addEventListener("open", () => this.heard());
    this.source.addEventListener("run", (event) => {
      this.heard();
      this.take(JSON.parse(event.data));
    });
    // Only the rows and nodes that are new; all else is there.
    this.source.addEventListener("change", (event) => {
      this.heard();
      this.take(merged(this.run, JSON.parse(event.data)));
    });
    this.source.addEventListener("error", () => {
      this.lost();
      if (this.source.readyState === EventSource.CLOSED) this.again(RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)]);
    });
  }

  take(run) {
    this.run = run;
    this.onRun(run);
  }

  again(delay) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), delay);
  }

  heard() {
    this.failures = 0;
    this.heardAt = performance.now();
    if (!this.live) this.onConnection({ live: true, since: Date.now() / 1000 });
    this.live = true;
  }

  lost() {
    if (this.live) this.onConnection({ live: false, since: Date.now() / 1000 });
    this.live = false;
  }

  /** After a silence, ask: nothing may have changed, or nobody may be there. */
  async check() {
    if (performance.now() - this.heardAt < SILENCE_MS || this.source.readyState !== EventSource.OPEN) return;
    try {
      this.take(await request("/api/run"));
      this.heardAt = performance.now();
    } catch {
      this.lost();
      this.again(0);
    }
  }
}
