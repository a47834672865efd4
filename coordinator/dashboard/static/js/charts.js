// SPDX-License-Identifier: Apache-2.0
// Charts on uPlot (vendor/uplot), which draws on a canvas: so each has a sentence that says what it shows, and a table elsewhere.

import { h, setAttribute, setText, show } from "./dom.js";
import { tick } from "./format.js";

const HEIGHT = 168;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const WHOLE = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
const MINUTE = 60, HOUR = 3600, DAY = 86400;
const TIMES = [1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE), ...[1, 2, 3, 6, 12].map((n) => n * HOUR), DAY, 2 * DAY, 7 * DAY];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function axes(spec) {
  const common = {
    font: FONT,
    stroke: () => colour("soft"),
    grid: { stroke: () => colour("grid"), width: 1 },
    ticks: { show: false },
    border: { show: false },
  };
  const time = spec.x === "time";
  return [
    {
      ...common,
      grid: { show: false },
      size: 24,
      gap: 4,
      space: time ? 64 : 26,
      incrs: time ? TIMES : WHOLE,
      values: (_, splits, __, ___, step) => splits.map((at) => (time ? tick(at, step) : String(at))),
    },
    {
      ...common,
      size: (_, labels) => 14 + 6.3 * Math.max(3, ...(labels ?? []).map((label) => label.length)),
      gap: 6,
      space: 30,
      incrs: spec.incrs,
      values: (_, splits) => splits.map((value) => spec.tick(value)),
    },
  ];
}

function series(one) {
  const fill = one.fill ? () => colour(one.fill) : undefined;
  const bars = one.bars ? uPlot.paths.bars({ size: [0.6, 26] }) : undefined;
  return {
    label: one.label,
    stroke: () => colour(one.colour),
    fill: bars ? () => colour(one.colour) : fill,
    width: bars ? 0 : (one.width ?? 1.75),
    dash: one.dash,
    paths: bars,
    spanGaps: one.spanGaps ?? false,
    points: { show: one.points ?? false, size: 5, width: 0, fill: () => colour(one.colour) },
  };
}

const options = (spec, width, onCursor) => ({
  width,
  height: spec.height ?? HEIGHT,
  padding: [8, 8, 0, 0],
  legend: { show: false },
  cursor: { y: false, drag: { x: false, y: false }, points: { size: 7, width: 0, show: spec.series.some((one) => !one.bars) } },
  scales: { x: { time: false, range: spec.xRange }, y: { range: spec.yRange } },
  axes: axes(spec),
  series: [{}, ...spec.series.map(series)],
  bands: spec.bands,
  hooks: { setCursor: [(plot) => onCursor(plot.cursor.idx ?? null)] },
});

/**
 * A chart with a heading, a key and the values under the pointer.
 *
 * `spec`: `title`; `x` is "round" or "time"; `series` are {label, colour, fill, bars, dash, points} of which the key names those with values;
 * `tick(value)` writes the axis; `read(data, index)` gives what each series is at an index (null: the latest), as texts;
 * `sentence(data)` says in words what is seen; `empty` is shown while there is nothing to draw.
 */
export function chart(spec) {
  const keys = spec.series.map((one) => {
    const value = h("b", {});
    const swatch = h("i", { class: `swatch ${one.dash ? "dashed" : ""} ink-${one.colour}` });
    return { value, item: h("li", {}, swatch, one.label ? `${one.label} ` : null, value) };
  });
  const at = h("span", { class: "chart-at" });
  const key = h("ul", { class: "key", "aria-hidden": "true" }, ...keys.map(({ item }) => item));
  const plot = h("div", { class: "plot", role: "img" });
  const nothing = h("p", { class: "empty" }, spec.empty);
  const element = h("figure", { class: "chart card" }, h("figcaption", {}, h("h3", {}, spec.title), at, key), plot, nothing);
  let drawn = null;
  let data = null;

  const readout = (index) => {
    if (!data?.[0].length) return;
    const last = data[0].length - 1;
    const chosen = index === null ? last : Math.min(index, last);
    spec.read(data, chosen, index === null).forEach((text, i) => setText(keys[i].value, text));
    keys.forEach(({ item }, i) => show(item, data[i + 1].some((value) => value !== null)));
    setText(at, index === null ? "" : spec.at(data[0][chosen]));
  };
  const draw = () => {
    const width = plot.clientWidth;
    if (!width || !data?.[0].length) return;
    drawn?.destroy();
    drawn = new uPlot(options(spec, width, readout), data, plot);
  };
  const sizes = new ResizeObserver(() => {
    if (!drawn) draw();
    else if (plot.clientWidth && plot.clientWidth !== drawn.width) drawn.setSize({ width: plot.clientWidth, height: drawn.height });
  });
  sizes.observe(plot);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const recolour = () => drawn?.redraw(false, true);
  dark.addEventListener("change", recolour);

  return {
    element,
    /** New data: uPlot's columns, x first. */
    update(columns) {
      data = columns;
      const has = data[0].length > 0;
      show(plot, has);
      show(key, has);
      show(nothing, !has);
      if (!has) return;
      setAttribute(plot, "aria-label", spec.sentence(data));
      if (drawn) drawn.setData(data);
      else draw();
      readout(drawn?.cursor.idx ?? null);
    },
    destroy() {
      sizes.disconnect();
      dark.removeEventListener("change", recolour);
      drawn?.destroy();
    },
  };
}
