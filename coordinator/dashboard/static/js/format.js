// SPDX-License-Identifier: Apache-2.0
// Numbers as words, with their units. Pure functions: what is unknown (null, undefined, NaN) is a dash.

export const DASH = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);
const MEMORY_UNITS = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]];
const TRAFFIC_UNITS = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3], ["B", 1]];

/** A number with at most three digits that say something: 7.62, 41.3, 512. */
function short(value) {
  const digits = value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

const unitFor = (units, value) => units.find(([, size]) => value >= size) ?? units.at(-1);

/** Bytes of memory: 412 MiB. */
export function memory(bytes) {
  if (!known(bytes)) return DASH;
  const [unit, size] = unitFor(MEMORY_UNITS, bytes);
  return `${short(bytes / size)} ${unit}`;
}

/** Two sizes of memory in the unit of the larger: 412 / 640 MiB. */
export function memoryOf(used, limit) {
  if (!known(used)) return DASH;
  if (!known(limit) || limit <= 0) return memory(used);
  const [unit, size] = unitFor(MEMORY_UNITS, limit);
  return `${short(used / size)} / ${short(limit / size)} ${unit}`;
}

/** Bytes on the wire: 12.4 MB. */
export function traffic(bytes) {
  if (!known(bytes)) return DASH;
  const [unit, size] = unitFor(TRAFFIC_UNITS, bytes);
  return `${short(bytes / size)} ${unit}`;
}

/** A size on an axis, without zeros that say nothing: 1.5 GiB, not 1.50 GiB. */
export const onAxis = (text) => text.replace(/(\.\d*?)0+ /, "$1 ").replace(". ", " ");

/** A share between 0 and 1: 84.1 %. */
export function percent(share, digits = 1) {
  return known(share) ? `${(100 * share).toFixed(digits)} %` : DASH;
}

/** A loss: three decimals, fewer where the number is large. */
export function loss(value) {
  return known(value) ? value.toFixed(value >= 100 ? 1 : value >= 10 ? 2 : 3) : DASH;
}

export function celsius(value) {
  return known(value) ? `${value.toFixed(0)} °C` : DASH;
}

export function watts(value) {
  return known(value) ? `${value.toFixed(value >= 100 ? 0 : 1)} W` : DASH;
}

/** A length of time in seconds: 48 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const [minutes, hours, days] = [Math.floor(whole / 60), Math.floor(whole / 3600), Math.floor(whole / 86400)];
  if (minutes < 10) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  if (hours < 1) return `${minutes} min`;
  if (days < 2) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${days} d`;
}

/** How long ago: 12 s ago. Steps of five seconds within a minute, so that a table of nodes stays calm. */
export function ago(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${5 * Math.floor(seconds / 5)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MINUTES = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** Time of day of Unix seconds: 14:02:11. */
export const clock = (at) => (known(at) ? CLOCK.format(at * 1000) : DASH);

/** Time of day for an axis whose ticks lie `step` seconds apart. */
export function tick(at, step) {
  if (step >= 86400) return DAY.format(at * 1000);
  return (step >= 60 ? MINUTES : CLOCK).format(at * 1000);
}

/** The moment in full, for a tooltip. */
export const moment = (at) => (known(at) ? `${DAY.format(at * 1000)} ${CLOCK.format(at * 1000)}` : "");

/** "1 node", "3 nodes". */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
