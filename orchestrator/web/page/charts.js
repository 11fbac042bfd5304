// Throughput and latency over the last ten minutes, with what changed the cluster marked in them.

import { byId, el, setText, svg } from "./dom.js";
import { ago, rate, seconds, trimmed } from "./format.js";
import { compareNames } from "./layout.js";
import { ceiling } from "./scale.js";

const HEIGHT = 168;
const PAD = { left: 46, right: 8, top: 10, bottom: 22 };
const SPAN_MS = 600_000;
const LEAST_SPAN_MS = 60_000;
const COLOURS = 6;
/** Events that explain a step in a line. */
const MARKED = new Map([
  ["node_joined", "node joined"],
  ["node_left", "node left"],
  ["pipeline_active", "new plan"],
]);
const MOST_MARKS = 24;

/** A line chart of `series(store)`: [{name, value(moment), dashed}], all in one unit. */
class Chart {
  constructor(store, id, { series, unit, tick, empty }) {
    this.store = store;
    this.series = series;
    this.unit = unit;
    this.tick = tick;
    this.emptyText = empty;
    this.frame = byId(id);
    this.caption = byId(`${id}-caption`);
    this.legend = byId(`${id}-legend`);
    this.legendForm = "";
    this.width = 0;
    this.at = null;
    this.lines = svg("g");
    this.axes = svg("g", { class: "axes" });
    this.marks = svg("g", { class: "marks" });
    this.cursor = svg("line", { class: "cursor", y1: PAD.top, y2: HEIGHT - PAD.bottom, x1: -9, x2: -9 });
    this.drawing = svg("svg", { height: HEIGHT, role: "img" }, this.axes, this.marks, this.lines, this.cursor);
    this.frame.append(this.drawing);
    // Marks come with the next second's figures: not each event is worth a drawing.
    store.watch(["metrics", "models", "choice", "reset"], () => this.draw());
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
      this.drawing.setAttribute("width", this.width);
      this.draw();
    }).observe(this.frame);
    this.drawing.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.drawing.addEventListener("pointerleave", () => this.point(null));
  }

  draw() {
    const { moments } = this.store;
    const series = this.series(this.store);
    const end = moments.length > 0 ? moments[moments.length - 1].at_ms : this.store.now();
    const begin = moments.length > 0 ? moments[0].at_ms : end;
    const span = Math.min(SPAN_MS, Math.max(LEAST_SPAN_MS, end - begin));
    const inner = this.width - PAD.left - PAD.right;
    if (inner <= 0) return;
    const x = (ms) => PAD.left + inner * (1 - (end - ms) / span);
    const values = series.map((one) => moments.map(one.value));
    const top = ceiling(Math.max(0, ...values.flat().filter((value) => value !== null)));
    const y = (value) => HEIGHT - PAD.bottom - (HEIGHT - PAD.top - PAD.bottom) * (value / top);
    this.scale = { x, moments, series, values };
    this.drawAxes(top, y, x, end, span);
    const marked = this.drawMarks(x, end - span);
    this.lines.replaceChildren(
      ...series.map((one, index) =>
        svg("path", {
          d: path(moments, values[index], x, y),
          class: `line colour-${one.colour % COLOURS}${one.dashed ? " is-dashed" : ""}`,
        }),
      ),
    );
    this.drawLegend(series, marked);
    this.say();
  }

  /** The lines' names, and the words for what is marked by dots. */
  drawLegend(series, marked) {
    const kind = (one) => `colour-${one.colour % COLOURS}${one.dashed ? " is-dashed" : ""}`;
    const items = series.map((one) => [kind(one), one.name]);
    if (marked.length > 0) items.push(["is-mark", `${marked.join(", ")} (see events)`]);
    const form = JSON.stringify(items);
    if (form === this.legendForm) return;
    this.legendForm = form;
    this.legend.replaceChildren(...items.map(([name, text]) => el("li", { class: name }, text)));
  }

  drawAxes(top, y, x, end, span) {
    const lines = [0, top / 2, top].flatMap((value) => [
      svg("line", { x1: PAD.left, x2: this.width - PAD.right, y1: y(value), y2: y(value) }),
      svg("text", { x: PAD.left - 6, y: y(value) + 4, "text-anchor": "end" }, this.tick(value)),
    ]);
    const times = [span, span / 2].map((ms) =>
      svg("text", { x: x(end - ms), y: HEIGHT - 6, "text-anchor": ms === span ? "start" : "middle" }, ago(ms)),
    );
    const now = svg("text", { x: this.width - PAD.right, y: HEIGHT - 6, "text-anchor": "end" }, "now");
    this.axes.replaceChildren(...lines, ...times, now);
  }

  drawMarks(x, begin) {
    const told = this.store.events.filter((event) => MARKED.has(event.event));
    const found = told.slice(-MOST_MARKS).map((event) => ({ event, at: Date.parse(event.at) }));
    const shown = found.filter(({ at }) => at >= begin);
    this.marks.replaceChildren(
      ...shown.map(({ event, at }) =>
        svg(
          "g",
          {},
          svg("line", { x1: x(at), x2: x(at), y1: PAD.top, y2: HEIGHT - PAD.bottom }),
          svg("title", {}, `${MARKED.get(event.event)}: ${event.text}`),
        ),
      ),
    );
    return [...MARKED].filter(([name]) => shown.some(({ event }) => event.event === name)).map(([, word]) => word);
  }

  point(offset) {
    this.at = offset;
    this.say();
  }

  /** The latest figures, or those under the pointer. */
  say() {
    const { moments, series, values, x } = this.scale;
    if (moments.length === 0) {
      setText(this.caption, this.emptyText);
      return;
    }
    let index = moments.length - 1;
    if (this.at !== null) {
      for (let near = 0; near < moments.length; near += 1) {
        if (Math.abs(x(moments[near].at_ms) - this.at) < Math.abs(x(moments[index].at_ms) - this.at)) index = near;
      }
    }
    const at = this.at === null ? -9 : x(moments[index].at_ms);
    this.cursor.setAttribute("x1", at);
    this.cursor.setAttribute("x2", at);
    const figures = series.map((one, line) => `${one.name} ${values[line][index] === null ? "–" : this.unit(values[line][index])}`);
    const when = this.at === null ? "now" : ago(moments[moments.length - 1].at_ms - moments[index].at_ms);
    const text = figures.length > 0 ? `${when}: ${figures.slice(0, 4).join(", ")}` : this.emptyText;
    setText(this.caption, text);
    this.drawing.setAttribute("aria-label", text);
  }
}

function path(moments, values, x, y) {
  let text = "";
  let pen = false;
  for (let index = 0; index < moments.length; index += 1) {
    const value = values[index];
    if (value === null) {
      pen = false;
      continue;
    }
    // A second alone is a dot: a line of no length, with round ends.
    text += `${pen ? "L" : "M"}${x(moments[index].at_ms).toFixed(1)} ${y(value).toFixed(1)}${pen ? "" : "h0"}`;
    pen = true;
  }
  return text;
}

export function makeCharts(store, choice) {
  new Chart(store, "throughput", {
    unit: rate,
    tick: (value) => `${trimmed(value)}/s`,
    empty: "nothing is served yet",
    series: ({ models }) =>
      [...models.keys()].sort(compareNames).map((name, colour) => ({
        name,
        colour,
        value: (moment) => moment.models[name]?.answered_per_s ?? null,
      })),
  });
  new Chart(store, "latency", {
    unit: seconds,
    tick: (value) => (value < 1 ? `${trimmed(value * 1000)} ms` : `${trimmed(value)} s`),
    empty: "no answer yet",
    series: ({ models }) => {
      const name = choice.model;
      if (name === null) return [];
      const colour = [...models.keys()].sort(compareNames).indexOf(name);
      return [
        { name: "p50", colour, value: (moment) => moment.models[name]?.p50_s ?? null },
        { name: "p95", colour, dashed: true, value: (moment) => moment.models[name]?.p95_s ?? null },
      ];
    },
  });
}
