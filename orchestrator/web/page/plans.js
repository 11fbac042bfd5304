// The plan in force, what else the planner looked at, and on request all that nothing else beats.

import { byId, el, setText, svg } from "./dom.js";
import { digits, percent, rate, seconds, trimmed } from "./format.js";
import { ceiling } from "./scale.js";

const HEIGHT = 240;
const PAD = { left: 52, right: 18, top: 14, bottom: 38 };
const MOST_STAGES = 6;

export class Plans {
  constructor(store, choice) {
    this.store = store;
    this.choice = choice;
    this.front = null;
    this.form = "";
    this.width = 0;
    this.button = byId("front-ask");
    this.said = byId("front-said");
    this.plot = byId("plans-plot");
    this.button.addEventListener("click", () => this.ask());
    store.watch(["models", "choice", "reset"], () => this.draw());
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.form = "";
      this.draw();
    }).observe(this.plot);
  }

  async ask() {
    const { model } = this.choice;
    this.button.disabled = true;
    setText(this.said, "the planner looks at all plans …");
    try {
      const response = await fetch(`api/front/${encodeURIComponent(model)}`);
      const told = await response.json();
      if (told.status === "error") {
        setText(this.said, sentence(told.error));
      } else {
        this.front = { model, generation: this.store.models.get(model)?.generation, points: told.points };
        const notes = (told.notes ?? []).map((note) => ` (${note})`).join("");
        setText(this.said, `${told.points.length} plans that nothing else beats in both${notes}`);
      }
    } catch {
      setText(this.said, "the orchestrator cannot be reached; try again when it is back");
    } finally {
      this.button.disabled = false;
      this.form = "";
      this.draw();
    }
  }

  draw() {
    const model = this.store.models.get(this.choice.model);
    this.button.hidden = model === undefined;
    const form = JSON.stringify([this.width, this.choice.model, model?.generation, model?.reason, model?.alternatives, model?.predicted, model?.measured]);
    if (form === this.form) return;
    this.form = form;
    const list = byId("plans-list");
    byId("plans-table").hidden = model === undefined;
    if (model === undefined) {
      this.plot.replaceChildren();
      byId("plans-legend").hidden = true;
      list.replaceChildren();
      setText(byId("plans-why"), "Plans are shown when a model is served: amp4ec serve mobilenet_v2");
      return;
    }
    if (this.front !== null && this.front.model !== model.model) {
      this.front = null;
      setText(this.said, "");
    }
    setText(byId("plans-why"), model.reason || "no reason was given");
    list.replaceChildren(...rows(model));
    this.drawPlot(model);
  }

  drawPlot(model) {
    const points = [];
    const add = (figures, kind, text) => {
      if (figures?.latency_s > 0 && figures?.throughput_per_s > 0) {
        points.push({ x: figures.latency_s, y: figures.throughput_per_s, kind, text });
      }
    };
    for (const point of this.front?.points ?? []) add(point.predicted, "front", shape(point.pipelines));
    for (const other of model.alternatives) add(other.figures, "other", other.text);
    add(model.predicted, "chosen", "in force, predicted");
    byId("plans-legend").hidden = points.length === 0;
    byId("plans-legend-front").hidden = this.front === null;
    if (points.length === 0 || this.width < 120) {
      this.plot.replaceChildren();
      return;
    }
    const inner = { width: this.width - PAD.left - PAD.right, height: HEIGHT - PAD.top - PAD.bottom };
    const most = {
      x: ceiling(1.04 * Math.max(...points.map((one) => one.x))),
      y: ceiling(1.04 * Math.max(...points.map((one) => one.y))),
    };
    const x = (value) => PAD.left + (inner.width * value) / most.x;
    const y = (value) => HEIGHT - PAD.bottom - (inner.height * value) / most.y;
    const axes = svg("g", { class: "axes" });
    for (const share of [0, 0.5, 1]) {
      axes.append(
        svg("line", { x1: PAD.left, x2: this.width - PAD.right, y1: y(most.y * share), y2: y(most.y * share) }),
        svg("text", { x: PAD.left - 6, y: y(most.y * share) + 4, "text-anchor": "end" }, trimmed(most.y * share)),
        svg("text", { x: x(most.x * share), y: HEIGHT - 20, "text-anchor": share === 1 ? "end" : share === 0 ? "start" : "middle" }, tick(most.x * share)),
      );
    }
    axes.append(
      svg("text", { x: this.width - PAD.right, y: HEIGHT - 5, "text-anchor": "end" }, "latency of a job alone →"),
      svg("text", { x: PAD.left + 6, y: PAD.top }, "↑ jobs/s"),
    );
    const line = points.filter((one) => one.kind === "front").sort((one, other) => one.x - other.x);
    const drawing = svg(
      "svg",
      { viewBox: `0 0 ${this.width} ${HEIGHT}`, width: this.width, height: HEIGHT, role: "img", "aria-label": "predicted latency and throughput of plans; the table has the figures" },
      axes,
      svg("polyline", { class: "front-line", points: line.map((one) => `${x(one.x)},${y(one.y)}`).join(" ") }),
      ...points.map((one) =>
        svg(
          "circle",
          { class: `point is-${one.kind}`, cx: x(one.x), cy: y(one.y), r: one.kind === "chosen" ? 8 : 4.5 },
          svg("title", {}, `${one.text}: ${rate(one.y)}, ${seconds(one.x)}`),
        ),
      ),
    );
    this.plot.replaceChildren(drawing);
  }
}

const tick = (value) => (value < 1 ? `${trimmed(value * 1000)} ms` : `${trimmed(value)} s`);

function rows(model) {
  const figures = (one) => [
    one?.throughput_per_s === null || one?.throughput_per_s === undefined ? "–" : digits(one.throughput_per_s),
    seconds(one?.latency_s),
    one?.exposure_ratio === null || one?.exposure_ratio === undefined ? "–" : percent(one.exposure_ratio * 100),
  ];
  const row = (name, one, why, kind = "") =>
    el("tr", { class: kind }, el("th", { scope: "row" }, name), ...figures(one).map((text) => el("td", { class: "number" }, text)), el("td", {}, why));
  const found = [row(`in force: ${shape(model.pipelines)}`, model.predicted, "predicted", "is-chosen")];
  if (model.measured.throughput_per_s !== null) {
    found.push(row("the same, as measured", model.measured, "over the last 10 s, under the load there was", "is-chosen"));
  }
  if (model.free_choice) found.push(row(model.free_choice.text, model.free_choice.figures, model.free_choice.reason));
  for (const other of model.alternatives) found.push(row(other.text, other.figures, other.reason));
  return found;
}

/** A plan in words. */
function shape(pipelines) {
  if (pipelines.length === 0) return "nothing yet";
  const lengths = pipelines.map((one) => one.stages.length);
  if (lengths.every((length) => length === 1)) {
    return lengths.length === 1 ? `all on ${pipelines[0].stages[0].node}` : `${lengths.length} copies`;
  }
  if (lengths.length === 1 && lengths[0] <= MOST_STAGES) {
    return pipelines[0].stages.map((stage) => stage.node).join(" → ");
  }
  return `${lengths.length} pipelines of ${[...new Set(lengths)].sort((one, other) => other - one).join(" and ")} stages`;
}

/** An error body in a sentence. */
export function sentence(error) {
  const parts = [error.message];
  if (error.expected) parts.push(`expected ${error.expected}`);
  if (error.got) parts.push(`got ${error.got}`);
  return `${error.code}: ${parts.join("; ")}`;
}
