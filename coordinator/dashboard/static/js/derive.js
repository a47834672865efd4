// SPDX-License-Identifier: Apache-2.0
// What the page says about a run and its nodes, from what the coordinator tells (RunView and NodeView). Pure functions.

import * as format from "./format.js";

/** A node above this share of its budget needs attention. */
export const TIGHT_SHARE = 0.9;

/** Agent and worker together, in bytes: what the budget is for. */
export const usedBytes = (node) => node.agent_rss_bytes + (node.worker_bytes ?? 0);

/** The share of its budget that a node uses, or null. */
export const memoryShare = (node) => (node.budget_bytes > 0 ? usedBytes(node) / node.budget_bytes : null);

/** The hottest sensor in °C, or null. */
export function hottest(node) {
  const values = Object.values(node.readings?.temperatures_celsius ?? {});
  return values.length ? Math.max(...values) : null;
}

/** The last round whose published state is out; 0 for none. */
export const published = (run) => run.rows.at(-1)?.round ?? 0;

/** What nodes measured of a round's published state on held-out rows of their own, with the spread over nodes; null where none did. */
export function onNodes(row) {
  if (!row.nodes) return null;
  const scores = Object.entries(row.nodes.scores).sort(([a, one], [b, other]) => one.accuracy - other.accuracy || byText(a, b));
  return {
    accuracy: row.nodes.accuracy,
    loss: row.nodes.loss,
    rows: row.nodes.rows,
    count: scores.length,
    least: scores[0]?.[1].accuracy ?? null,
    largest: scores.at(-1)?.[1].accuracy ?? null,
    worst: scores[0]?.[0] ?? "",
  };
}

/** The round that is open or opens next, never beyond the last. */
export const shownRound = (run) => Math.min(Math.max(run.round, 1), run.total_rounds);

/** A round's number, with what it is for where it is none of the method's own: "1 (head)". */
export function roundTitle(run, round) {
  const purpose = run.phases?.[round];
  return purpose ? `${round} (${purpose})` : String(round);
}

/** How the run stands, as {key, text}: `key` chooses the colour. */
export function phase(run) {
  if (run.phase === "finished") return { key: "done", text: "finished" };
  if (run.phase === "finishing") return { key: "done", text: "finishing" };
  if (run.paused) return run.phase === "open" ? { key: "paused", text: "pausing after this round" } : { key: "paused", text: "paused" };
  if (run.phase === "open") return { key: "open", text: "round open" };
  if (run.phase === "closing") return { key: "open", text: "closing the round" };
  return { key: "waiting", text: "waiting for nodes" };
}

/** Whether a node holds the published model, as {key, text}. */
export function digestState(node, run) {
  if (node.state === "refused") return { key: "bad", text: "another version" };
  if (node.trouble) return { key: "bad", text: "digest differs" };
  if (node.version < 0) return { key: "none", text: "no model yet" };
  const newest = published(run);
  if (node.version < newest) return { key: "none", text: newest - node.version === 1 ? "one behind" : `${newest - node.version} behind` };
  if (newest === 0) return { key: "none", text: "not trained yet" };
  return node.digest && node.digest === run.digest ? { key: "good", text: "digest same" } : { key: "none", text: "not compared" };
}

const WORDS = { full: "disk full", lost: "lost", "": "silent" };

/** What a node does, as {key, text, step}. */
export function activity(node, run) {
  if (!node.online) return { key: "offline", text: "offline", detail: node.state && node.state !== "lost" ? `left, ${node.state}` : "" };
  const word = WORDS[node.state] ?? node.state;
  if (run.excluded.includes(node.node)) return { key: "excluded", text: "excluded", detail: word };
  if (node.state === "training" && node.steps > 0) return { key: "busy", text: "training", detail: `step ${node.step} of ${node.steps}` };
  const busy = ["loading", "fetching", "adopting", "training", "sending"].includes(node.state);
  return { key: node.state === "full" ? "bad" : busy ? "busy" : "idle", text: word, detail: busy ? "" : part(node, run) };
}

/** A node's part in the open round, in words. */
export function part(node, run) {
  if (run.phase !== "open" && run.phase !== "closing") return "";
  if (run.accepted.includes(node.node)) return "update is in";
  return run.cohort.includes(node.node) ? "invited" : "not invited";
}

/** Why an operator should look at a node: {key, text} with the worst first; empty if there is nothing. */
export function attention(node, run) {
  if (run.excluded.includes(node.node)) return [];
  const found = [];
  const add = (key, text) => found.push({ key, text });
  if (node.trouble) add("bad", node.trouble);
  if (!node.online && run.phase !== "finished" && node.state !== "finished") add("bad", node.reason || "offline");
  const share = memoryShare(node);
  if (node.online && share !== null && share > TIGHT_SHARE) add(share > 1 ? "bad" : "warn", `${format.percent(share, 0)} of the budget`);
  if (node.online && node.reason) add("warn", node.reason);
  if (node.online && node.readings?.throttled) add("warn", `throttled${node.readings.throttle_reason ? `: ${node.readings.throttle_reason}` : ""}`);
  return found;
}

/** Everything a row shows of a node, so that drawing compares and never computes. */
export function row(node, run) {
  const notes = attention(node, run);
  return {
    node,
    name: node.node,
    activity: activity(node, run),
    digest: digestState(node, run),
    used: usedBytes(node),
    share: memoryShare(node),
    celsius: hottest(node),
    watts: node.readings?.power_watts ?? null,
    notes,
  };
}

const byText = new Intl.Collator("en", { numeric: true }).compare;
const stateRank = { bad: 0, offline: 1, excluded: 2, busy: 3, idle: 4 };

/** How rows are sorted; each compares ascending, and names break ties. */
export const SORTS = {
  name: { label: "name", compare: (a, b) => byText(a.name, b.name), first: "asc" },
  state: {
    label: "state",
    compare: (a, b) => stateRank[a.activity.key] - stateRank[b.activity.key] || byText(a.activity.text, b.activity.text),
    first: "asc",
  },
  memory: { label: "memory", compare: (a, b) => (a.share ?? -1) - (b.share ?? -1), first: "desc", live: true },
  seen: { label: "last word", compare: (a, b) => (a.node.last_seen_at ?? 0) - (b.node.last_seen_at ?? 0), first: "asc", live: true },
};

/** Rows in order. */
export function sorted(rows, key, direction) {
  const { compare } = SORTS[key];
  const sign = direction === "desc" ? -1 : 1;
  return [...rows].sort((a, b) => sign * compare(a, b) || byText(a.name, b.name));
}

/** Rows whose name, device, state or reason contain every word of `text`. */
export function matching(rows, text, onlyAttention) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((shown) => {
    if (onlyAttention && !shown.notes.length) return false;
    if (!words.length) return true;
    const { node, activity: doing, notes } = shown;
    const all = [node.node, node.device, node.route, node.software, doing.text, ...notes.map((note) => note.text)].join(" ").toLowerCase();
    return words.every((word) => all.includes(word));
  });
}

/** What changed between two views that is worth a sentence aloud; "" for nothing. */
export function announcement(before, after) {
  if (!before) return "";
  if (before.phase !== "finished" && after.phase === "finished") return `The run is finished${lastAccuracy(after)}.`;
  if (!before.paused && after.paused) return "The run is paused.";
  if (before.paused && !after.paused) return "The run goes on.";
  if (after.phase === "open" && (before.phase !== "open" || before.round !== after.round)) {
    return `Round ${after.round} of ${after.total_rounds} is open for ${format.count(after.cohort.length, "node")}${lastAccuracy(after)}.`;
  }
  return "";
}

function lastAccuracy(run) {
  const measured = run.rows.findLast((round) => round.accuracy !== null || round.nodes);
  if (!measured) return "";
  return `; accuracy after round ${measured.round}: ${format.percent(measured.accuracy ?? measured.nodes.accuracy)}`;
}

const eventKey = (event) => `${event.at} ${event.kind} ${event.node} ${event.text}`;

/** Events that are known already and those of a new view, each once, oldest first, the last thousand. */
export function mergedEvents(known, newer) {
  const keys = new Set(known.map(eventKey));
  const fresh = newer.filter((event) => !keys.has(eventKey(event)));
  return fresh.length ? [...known, ...fresh].sort((a, b) => a.at - b.at).slice(-1000) : known;
}

/** Seconds that the open round will probably take still, from the last three rounds; null before there is one, and once it has taken longer. */
export function roundLeft(run, now) {
  const seconds = run.rows.slice(-3).map((row) => row.seconds).sort((a, b) => a - b);
  if (!seconds.length || !(run.round_opened_at > 0)) return null;
  const left = seconds[Math.floor(seconds.length / 2)] - (now - run.round_opened_at);
  return left > 0 ? left : null;
}
