// A picture dropped here is a job like any client's; shown are its answer, its way and where its time went.

import { byId, el, setText, svg } from "./dom.js";
import { bytes, seconds } from "./format.js";
import { sentence } from "./plans.js";

const BAR = 20;
const LINE = 30;
const AXIS = 20;
const PARTS = ["transit_s", "queue_s", "compute_s"];

export class Job {
  constructor(store, choice) {
    this.store = store;
    this.choice = choice;
    this.input = byId("file");
    this.drop = byId("drop");
    this.answer = byId("answer");
    this.preview = byId("preview");
    this.number = 0;
    this.shown = null;
    this.input.addEventListener("change", () => this.send(this.input.files[0]));
    for (const name of ["dragenter", "dragover"]) {
      this.drop.addEventListener(name, (event) => {
        event.preventDefault();
        this.drop.classList.add("is-over");
      });
    }
    for (const name of ["dragleave", "drop"]) {
      this.drop.addEventListener(name, () => this.drop.classList.remove("is-over"));
    }
    this.drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this.send(event.dataTransfer.files[0]);
    });
    // A picture dropped beside the box would replace the page.
    for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
    addEventListener("paste", (event) => this.send(event.clipboardData?.files[0]));
    new ResizeObserver(() => this.shown !== null && this.redraw()).observe(byId("job"));
    store.watch(["models", "choice", "reset"], () => this.ready());
  }

  ready() {
    const { model } = this.choice;
    this.input.disabled = model === null;
    setText(
      byId("drop-text"),
      model === null
        ? "No model is served yet. Serve one: amp4ec serve mobilenet_v2"
        : `Drop a picture here, paste one, or choose a file: ${model} answers`,
    );
  }

  async send(file) {
    if (!file || this.choice.model === null) return;
    const { model } = this.choice;
    this.number += 1;
    const mine = this.number;
    this.input.value = "";
    this.show(file);
    this.answer.replaceChildren(el("p", { class: "muted" }, `${file.name}, ${bytes(file.size)}: sent to ${model} …`));
    const began = performance.now();
    let told;
    try {
      const response = await fetch(`api/infer/${encodeURIComponent(model)}`, { method: "POST", body: file });
      told = await response.json();
    } catch {
      told = { status: "error", error: { code: "unavailable", message: "the orchestrator cannot be reached" } };
    }
    if (mine !== this.number) return; // a later picture is shown
    this.shown = { told, took: (performance.now() - began) / 1000 };
    this.redraw();
  }

  show(file) {
    if (this.preview.src) URL.revokeObjectURL(this.preview.src);
    this.preview.src = URL.createObjectURL(file);
    this.preview.alt = file.name;
    this.preview.hidden = false;
    this.preview.onerror = () => {
      this.preview.hidden = true; // no picture that a browser shows; the answer says what it is
    };
  }

  redraw() {
    const { told, took } = this.shown;
    if (told.status === "error") {
      this.answer.replaceChildren(el("p", { class: "error", role: "alert" }, sentence(told.error)));
      return;
    }
    this.answer.replaceChildren(...labels(told), way(told, took), ...gantt(told, this.answer.clientWidth));
  }
}

function labels(told) {
  const notes = [];
  if (told.weights === "none") notes.push("The weights are random: the labels mean nothing.");
  if (!told.exact) notes.push("Served at a level that is not exact.");
  if (told.cached) notes.push("An equal input was answered before: this is that answer.");
  const list = (told.top ?? []).slice(0, 5).map((one) => {
    const bar = el("span", { class: "share" });
    bar.style.width = `${(one.probability * 100).toFixed(1)}%`;
    return el(
      "li",
      {},
      el("span", { class: "label" }, one.label),
      el("span", { class: "number" }, `${(one.probability * 100).toFixed(1)} %`),
      el("span", { class: "track" }, bar),
    );
  });
  const shown = list.length > 0 ? el("ol", { class: "labels" }, list) : el("p", {}, "This model gives tensors, no labels.");
  return [shown, ...notes.map((note) => el("p", { class: "note" }, note))];
}

function way(told, took) {
  const nodes = told.nodes.length > 0 ? told.nodes.join(" → ") : "no node";
  return el(
    "p",
    { class: "way" },
    el("strong", {}, seconds(told.latency_ms / 1000)),
    ` by way of ${nodes}, generation ${told.generation}; ${seconds(took)} with this page and its upload`,
  );
}

/** A line per stage; time goes to the right. The parts of all stages sum to the latency. */
function gantt(told, width) {
  if (told.trace.length === 0) return [];
  const total = told.trace.reduce((sum, entry) => sum + PARTS.reduce((part, name) => part + entry[name], 0), 0);
  const scale = total > 0 ? width / total : 0;
  const lanes = told.trace.length * LINE;
  const drawing = svg("svg", {
    class: "gantt axes",
    width,
    height: lanes + AXIS,
    viewBox: `0 0 ${width} ${lanes + AXIS}`,
    role: "img",
    "aria-label": "where the time went, stage after stage; the table below has the figures",
  });
  let at = 0;
  told.trace.forEach((entry, index) => {
    drawing.append(svg("rect", { class: "lane", x: 0, y: index * LINE + 4, width, height: BAR, rx: 4 }));
    for (const name of PARTS) {
      const size = entry[name] * scale;
      drawing.append(
        svg(
          "rect",
          { class: name.replace("_s", ""), x: at, y: index * LINE + 4, width: Math.max(size, 0.5), height: BAR },
          svg("title", {}, `${entry.node}: ${name.replace("_s", "")} ${seconds(entry[name])}`),
        ),
      );
      at += size;
    }
  });
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const x = share * width;
    drawing.append(
      svg("line", { x1: x, x2: x, y1: 0, y2: lanes }),
      svg("text", { x, y: lanes + 13, "text-anchor": anchor }, seconds(share * total)),
    );
  }
  const head = ["stage", "node", "transit", "queue", "compute"];
  const table = el(
    "table",
    { class: "trace" },
    el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col", class: PARTS.includes(`${name}_s`) ? `number key ${name}` : "" }, name)))),
    el(
      "tbody",
      {},
      told.trace.map((entry) =>
        el(
          "tr",
          {},
          el("td", {}, String(entry.stage)),
          el("td", {}, entry.node),
          PARTS.map((name) => el("td", { class: "number" }, seconds(entry[name]))),
        ),
      ),
    ),
  );
  return [drawing, table];
}
