// The cluster as a picture. It is built anew when nodes or plans change, and else only filled with figures.

import { byId, el, setAttribute, setText, svg } from "./dom.js";
import { bytes, bytesPerSecond, percent, rate, seconds, shortened } from "./format.js";
import { compareNames, layout } from "./layout.js";

const CHARACTER = 7.4; // of a name, in pixels
const BUSY_PERCENT = 90;
/** Boxes or links that are made in one frame; they are a layer. */
const MADE_AT_ONCE = 20;
/** Boxes and links that get new figures in one frame: two layers of boxes. */
const FILLED_AT_ONCE = 40;
/** Of badges and figures over the edges of their boxes, in pixels. */
const OVERHANG = 24;
const LOOPBACK = /^mqtts?:\/\/(localhost|127\.|\[::1\])/;
/** What may change where things stand. */
const PLACES = ["nodes", "models", "orchestrator", "reset"];

export class Picture {
  constructor(store, onNode) {
    this.store = store;
    this.onNode = onNode;
    this.frame = byId("picture");
    this.width = 0;
    this.form = "";
    this.fillers = [];
    this.rows = new Map();
    store.watch([...PLACES, "telemetry", "metrics"], (_, dirty) => this.draw(dirty));
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width !== this.width) {
        this.width = width;
        store.changed("nodes");
      }
    }).observe(this.frame);
    this.frame.addEventListener("keydown", (event) => this.move(event));
  }

  draw(dirty) {
    if (this.width === 0) return;
    if (PLACES.some((kind) => dirty.has(kind))) {
      this.rows = rowsOf(this.store);
      const form = formOf(this.store, this.width);
      if (form !== this.form) {
        this.form = form;
        this.build();
      }
    }
    this.store.inFrames(slices(this.fillers, FILLED_AT_ONCE).map((some) => () => some.forEach((filler) => filler(this.store))));
  }

  build() {
    const active = document.activeElement;
    const focused = this.frame.contains(active) ? active.getAttribute("data-box") : null;
    const { titles, boxes, links, height } = layout(this.store, this.width);
    this.fillers = [];
    byId("picture-key").hidden = boxes.length === 0;
    if (boxes.length === 0) {
      this.frame.replaceChildren(empty(this.store));
      return;
    }
    const drawing = el("div", { class: "drawing", role: "group", "aria-label": describe(this.store) });
    drawing.style.height = `${height}px`;
    drawing.append(this.layer(0, height, titles.map(heading)));
    this.frame.replaceChildren(drawing);
    // A part now, the rest in the next frames: laying out much text takes long.
    const numbered = boxes.map((box, index) => ({ box, index }));
    this.store.inFrames([
      ...slices(links, MADE_AT_ONCE).map((some) => () => {
        const ends = some.flatMap((link) => [boxes[link.from], boxes[link.to]]);
        this.add(drawing, ends, () => some.map((link) => this.link(link, boxes)));
      }),
      ...slices(numbered, MADE_AT_ONCE).map((some) => () => {
        this.add(drawing, some.map(({ box }) => box), () => some.map(({ box, index }) => this.box(box, index)));
      }),
      () => focusAgain(drawing, focused),
    ]);
  }

  /** What `make` makes, with its figures, in a layer of its own, which is as high as `boxes` need. */
  add(drawing, boxes, make) {
    const filled = this.fillers.length;
    const top = Math.min(...boxes.map((box) => box.y)) - OVERHANG;
    const bottom = Math.max(...boxes.map((box) => box.y + box.height)) + OVERHANG;
    const children = make();
    for (const filler of this.fillers.slice(filled)) filler(this.store);
    drawing.append(this.layer(top, bottom, children));
  }

  /** A drawing of its own: when a figure in it changes, no other is laid out and painted again. */
  layer(top, bottom, children) {
    const [width, height] = [this.width, bottom - top];
    const drawing = svg("svg", { class: "layer", viewBox: `0 ${top} ${width} ${height}`, width, height }, children);
    drawing.style.top = `${top}px`;
    return drawing;
  }

  box(box, index) {
    if (box.kind === "jobs" || box.kind === "answers") return this.end(box);
    return box.kind === "card" ? this.card(box, index) : this.tile(box, index);
  }

  /** Where jobs come from, with how many wait, or where answers go, with how many there are. */
  end(box) {
    const figure = svg("text", { x: box.width / 2, y: box.height / 2 + 14, class: "figure" });
    this.fillers.push((store) => {
      const metrics = store.metrics?.models?.[box.model.model];
      if (metrics === undefined) return;
      const text = box.kind === "jobs" ? `${metrics.queued} waiting` : rate(metrics.answered_per_s);
      setText(figure, text);
    });
    return svg(
      "g",
      { class: "end", transform: `translate(${box.x} ${box.y})` },
      svg("rect", { width: box.width, height: box.height, rx: box.height / 2 }),
      svg("text", { x: box.width / 2, y: box.height / 2 - 2 }, box.kind),
      figure,
    );
  }

  group(box, index) {
    const { node } = box;
    const title = svg("title", {}, node);
    const open = () => this.onNode(node);
    const group = svg(
      "g",
      {
        transform: `translate(${box.x} ${box.y})`,
        class: "node",
        tabindex: "-1",
        role: "button",
        "data-box": `${box.pipeline?.pipeline ?? ""}/${box.stage?.stage ?? ""}/${node}`,
        "data-node": node,
        "data-index": index,
        onclick: open,
        onkeydown: (event) => {
          if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            open();
          }
        },
      },
      title,
      svg("rect", { class: "plate", width: box.width, height: box.height, rx: 8 }),
    );
    if (box.slowest) group.classList.add("is-slowest");
    return group;
  }

  card(box, index) {
    const group = this.group(box, index);
    const { stage, pipeline, model, node } = box;
    const inner = box.width - 24;
    const doing = svg("text", { x: 12, y: 58, class: "figure" });
    const bar = svg("rect", { class: "bar", x: 12, y: 68, height: 5, rx: 2.5, width: 0 });
    const mark = svg("text", { x: box.width - 12, y: 20, class: "mark" });
    group.append(
      svg("text", { x: 12, y: 20, class: "name" }, shortened(node, Math.floor((inner - 40) / CHARACTER))),
      mark,
      svg("text", { x: 12, y: 39, class: "figure" }, `stage ${stage.stage} · blocks ${range(stage.blocks)}`),
      doing,
      svg("rect", { class: "track", x: 12, y: 68, height: 5, rx: 2.5, width: inner }),
      bar,
    );
    if (box.slowest) group.append(badge());
    this.fillers.push((store) => {
      const telemetry = store.stageTelemetry(node, pipeline.pipeline, model.generation, stage.stage);
      const cpu = store.telemetry.get(node)?.cpu_percent;
      const latest = this.rows.get(rowKey(pipeline, stage)) ?? stage;
      const now = telemetry && telemetry.items > 0 ? telemetry.compute_s : latest.measured_s;
      const time = now ?? latest.predicted_s;
      setText(
        doing,
        `${seconds(time)}${now === null || now === undefined ? " predicted" : ""}` +
          (telemetry ? ` · queue ${telemetry.queue}` : ""),
      );
      fillNode(store, node, group, mark, bar, inner, cpu, roleOf(box));
    });
    return group;
  }

  tile(box, index) {
    const group = this.group(box, index);
    const { node } = box;
    if (box.stage === undefined) group.classList.add("is-idle");
    const inner = box.width - 20;
    const mark = svg("text", { x: box.width - 10, y: 19, class: "mark" });
    const bar = svg("rect", { class: "bar", x: 10, y: 31, height: 5, rx: 2.5, width: 0 });
    group.append(
      svg("text", { x: 10, y: 19, class: "name" }, shortened(node, Math.floor((inner - 34) / CHARACTER))),
      mark,
      svg("rect", { class: "track", x: 10, y: 31, height: 5, rx: 2.5, width: inner }),
      bar,
    );
    if (box.slowest) group.append(badge());
    this.fillers.push((store) => {
      const cpu = store.telemetry.get(node)?.cpu_percent;
      fillNode(store, node, group, mark, bar, inner, cpu, roleOf(box));
    });
    return group;
  }

  link(link, boxes) {
    const from = boxes[link.from];
    const to = boxes[link.to];
    const group = svg("g", { class: link.small ? "link is-small" : "link" });
    group.append(svg("path", { d: way(from, to), "marker-end": "url(#arrow)" }));
    if (link.all) return group;
    const level = Math.abs(middle(from) - middle(to)) < 1;
    const place = level
      ? { x: (from.x + from.width + to.x) / 2 - 3, anchor: "middle", y: middle(from) }
      : { x: to.x + to.width / 2 + 12, anchor: "start", y: (from.y + from.height + to.y) / 2 + 4 };
    const carried = svg("text", { x: place.x, y: level ? place.y - 8 : place.y - 2, "text-anchor": place.anchor, class: "carried" });
    const each = svg("text", { x: place.x, y: level ? place.y + 17 : place.y + 11, "text-anchor": place.anchor, class: "each" });
    const title = svg("title");
    group.append(title, carried, each);
    this.fillers.push((store) => fillLink(store, link, carried, each, title));
    return group;
  }

  /** Arrows move among nodes: one stop for the Tab key, however many nodes there are. */
  move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    const stops = [...this.frame.querySelectorAll(".node")];
    const at = stops.indexOf(document.activeElement);
    const next = stops[at + step];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    stops[at].setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  }
}

const heading = (title) =>
  svg(
    "text",
    { x: title.x, y: title.y, class: "title" },
    title.text,
    svg("tspan", title.below ? { x: 0, dy: 17, class: "detail" } : { dx: 10, class: "detail" }, title.detail),
  );

const slices = (all, size) => Array.from({ length: Math.ceil(all.length / size) }, (_, index) => all.slice(index * size, (index + 1) * size));

/** The box that had the focus in an earlier drawing has it again; else the first is where the Tab key stops. */
function focusAgain(drawing, focused) {
  const again = focused === null ? null : drawing.querySelector(`[data-box="${CSS.escape(focused)}"]`);
  (again ?? drawing.querySelector(".node"))?.setAttribute("tabindex", "0");
  again?.focus();
}

/** Half over the upper edge, and clear of the name below it. */
const badge = () =>
  svg("g", { class: "slowest" }, svg("rect", { x: 8, y: -12, width: 82, height: 16, rx: 8 }), svg("text", { x: 49, y: -0.5 }, "bottleneck"));

function roleOf({ stage, pipeline, slowest }) {
  if (stage === undefined) return "no stage";
  if (pipeline.stages.length === 1) return "the whole model";
  return `stage ${stage.stage}${slowest ? ", the bottleneck" : ""}`;
}

const range = ([start, stop]) => (stop - start === 1 ? `${start}` : `${start}–${stop - 1}`);

const middle = (box) => box.y + box.height / 2;

const rowKey = (pipeline, stage) => `${pipeline.pipeline}/${stage.stage}`;

/** The stages' latest rows: what is measured changes while everything stays where it stands. */
function rowsOf(store) {
  const rows = new Map();
  for (const model of store.models.values()) {
    for (const pipeline of model.pipelines) {
      for (const stage of pipeline.stages) rows.set(rowKey(pipeline, stage), stage);
    }
  }
  return rows;
}

/** What decides where things stand. */
function formOf(store, width) {
  const models = [...store.models.values()].map((model) => [
    model.model,
    model.state,
    model.generation,
    model.runtime,
    model.level,
    model.pipelines.map((pipeline) => [
      pipeline.pipeline,
      pipeline.stages.map((stage) => [stage.node, stage.blocks, slowness(pipeline, stage)]),
    ]),
  ]);
  return JSON.stringify([width, models, [...store.nodes.keys()], store.root, store.orchestrator === null]);
}

function slowness(pipeline, stage) {
  const time = (one) => one.measured_s ?? one.predicted_s;
  return pipeline.stages.every((other) => time(other) <= time(stage));
}

function fillNode(store, node, group, mark, bar, width, cpu, role) {
  const state = stateOf(store, node);
  const known = cpu !== undefined && state === "online";
  setText(mark, state === "online" ? (known ? percent(cpu) : "") : state);
  setAttribute(bar, "width", known ? Math.round((Math.min(cpu, 100) / 100) * width) : 0);
  group.classList.toggle("is-busy", known && cpu >= BUSY_PERCENT);
  group.classList.toggle("is-gone", state === "lost" || state === "offline" || state === "gone");
  group.classList.toggle("is-odd", !["online", "lost", "offline", "gone"].includes(state));
  setAttribute(group, "aria-label", `${node}: ${state}, ${role}`);
}

/** In a word: how a node stands, by its own state, by what the orchestrator says of it, and by the operator. */
export function stateOf(store, node) {
  const own = store.nodes.get(node);
  if (own === undefined) return "gone";
  if (own.state !== "online") return own.state;
  const cordon = store.cordons.get(node);
  if (cordon !== undefined) return cordon.drain ? "drained" : "cordoned";
  const standing = store.metrics?.nodes?.[node];
  return standing === undefined ? "online" : standing.state.replace("_", " ");
}

function fillLink(store, link, carried, each, title) {
  if (link.stage === null) {
    const first = link.next;
    const flow = store.stageTelemetry(first.node, link.pipeline.pipeline, link.model.generation, first.stage);
    const items = store.itemsPerSecond(first.node, flow);
    const received = store.rates.get(first.node)?.received;
    setText(carried, received === undefined ? "" : bytesPerSecond(received));
    setText(each, items === null ? "" : rate(items));
    setText(title, `what ${first.node} receives in all, and the jobs a second into its stage`);
    return;
  }
  const flow = store.stageTelemetry(link.stage.node, link.pipeline.pipeline, link.model.generation, link.stage.stage);
  const items = store.itemsPerSecond(link.stage.node, flow);
  const packed = link.stage.compression !== "none";
  setText(carried, items === null ? "" : bytesPerSecond(items * link.stage.output_bytes));
  setText(each, `${bytes(link.stage.output_bytes)}${packed ? " *" : ""}`);
  setText(
    title,
    `${bytes(link.stage.output_bytes)} an item${packed ? `, before ${link.stage.compression}` : ""}; ` +
      "the figure above is items a second times that",
  );
}

/** From one box to the next: straight in a line, around the corner into the next line. */
function way(from, to) {
  const [y, next] = [middle(from), middle(to)];
  const end = to.y - (to.slowest ? 19 : 7); // above the badge
  if (to.y > from.y + from.height - 1) {
    const x = Math.min(from.x + from.width / 2, to.x + to.width / 2);
    if (Math.abs(from.x - to.x) < to.width) return `M${x} ${from.y + from.height}V${end}`;
    const turn = (from.y + from.height + to.y) / 2;
    return `M${from.x + from.width / 2} ${from.y + from.height}V${turn}H${to.x + to.width / 2}V${end}`;
  }
  const start = from.x + from.width;
  const half = (start + to.x) / 2;
  if (Math.abs(y - next) < 4) return `M${start} ${y}H${to.x - 7}`;
  return `M${start} ${y}C${half} ${y} ${half} ${next} ${to.x - 7} ${next}`;
}

function describe(store) {
  const online = store.online().length;
  const models = [...store.models.keys()].sort(compareNames).join(", ") || "no model";
  return `${online} nodes online, serving ${models}. Arrow keys move among nodes, Enter shows one.`;
}

function empty(store) {
  if (store.orchestrator === null) {
    return el("p", { class: "empty" }, "No orchestrator has announced itself on this broker yet.");
  }
  const address = store.closed ? "@FILE-WITH-ITS-JOIN-TOKEN" : store.broker;
  return el(
    "div",
    { class: "empty" },
    el("p", {}, "No node yet. On a device that shall take part:"),
    el("pre", {}, `amp4ec agent --broker ${address}`),
    LOOPBACK.test(address) ? el("p", { class: "muted" }, "From another device, put this machine's own name or address in place of that one, which only this machine knows.") : null,
  );
}
