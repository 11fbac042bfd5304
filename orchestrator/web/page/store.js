// What the topics say, kept as plain objects, and who wants to know of a change.

const MOST_EVENTS = 1000;
const MOST_MOMENTS = 600;
/** Between two drawings of what changes all the time. */
const EVERY_MS = 300;
/** Counters are compared over at least this long: two messages may come together. */
const LEAST_SPAN_S = 0.5;

export class Store {
  constructor() {
    this.clear();
    this.server = "closed";
    this.why = "";
    this.views = [];
    this.dirty = new Set();
    this.steps = [];
    this.drawnAt = 0;
    this.planned = false;
  }

  clear() {
    this.root = "";
    this.broker = "";
    this.closed = false;
    this.connected = false;
    this.orchestrator = null;
    this.nodes = new Map();
    this.telemetry = new Map();
    this.rates = new Map();
    this.cordons = new Map();
    this.models = new Map();
    this.metrics = null;
    this.events = [];
    this.eventCount = 0;
    this.moments = [];
    this.skewMs = 0;
  }

  /** Have `draw(store)` called, once a frame at most, after one of `kinds` has changed. */
  watch(kinds, draw) {
    this.views.push({ kinds, draw });
  }

  take(frame) {
    switch (frame.kind) {
      case "snapshot":
        this.clear();
        this.root = frame.root;
        this.broker = frame.broker;
        this.closed = frame.closed;
        this.connected = frame.connected;
        this.skewMs = frame.at_ms - Date.now();
        this.moments = frame.history;
        for (const [topic, payload] of frame.topics) {
          // Its second stands in the history already.
          if (topic === "metrics") this.metrics = payload;
          else this.message(topic, payload);
        }
        this.events = frame.events;
        this.eventCount = frame.events.length;
        this.changed("connection", "orchestrator", "nodes", "models", "metrics", "events", "reset");
        break;
      case "messages":
        for (const [topic, payload] of frame.messages) this.message(topic, payload);
        break;
      case "connection":
        this.connected = frame.connected;
        this.changed("connection");
        break;
    }
  }

  message(topic, payload) {
    const levels = topic.split("/");
    const last = levels[levels.length - 1];
    if (topic === "orchestrator/state") {
      this.orchestrator = payload;
      this.changed("orchestrator");
    } else if (topic === "metrics") {
      this.takeMetrics(payload);
    } else if (topic === "event") {
      this.events.push(payload);
      this.eventCount += 1;
      if (this.events.length > MOST_EVENTS) this.events.splice(0, this.events.length - MOST_EVENTS);
      this.changed("events");
    } else if (levels[0] === "model" && last === "state") {
      set(this.models, levels[1], payload);
      this.changed("models");
    } else if (levels[0] === "node" && last === "state") {
      set(this.nodes, levels[1], payload);
      if (payload === null || payload.state !== "online") {
        this.telemetry.delete(levels[1]);
        this.rates.delete(levels[1]);
      }
      this.changed("nodes");
    } else if (levels[0] === "node" && last === "cordon") {
      set(this.cordons, levels[1], payload);
      this.changed("nodes");
    } else if (levels[0] === "node" && last === "telemetry") {
      this.takeTelemetry(levels[1], payload);
    }
  }

  takeMetrics(metrics) {
    this.metrics = metrics;
    const models = {};
    for (const [name, one] of Object.entries(metrics.models)) {
      models[name] = {
        answered_per_s: one.answered_per_s,
        p50_s: one.latency_p50_s,
        p95_s: one.latency_p95_s,
      };
    }
    this.moments.push({ at_ms: this.now(), models });
    if (this.moments.length > MOST_MOMENTS) this.moments.shift();
    this.changed("metrics");
  }

  takeTelemetry(node, telemetry) {
    const before = this.telemetry.get(node);
    this.telemetry.set(node, telemetry);
    if (before && before.incarnation === telemetry.incarnation) {
      const span = telemetry.uptime_s - before.uptime_s;
      if (span >= LEAST_SPAN_S) this.rates.set(node, ratesOf(before, telemetry, span));
    } else {
      this.rates.delete(node);
    }
    this.changed("telemetry");
  }

  /** The server's wall time in ms, as far as this browser knows. */
  now() {
    return Date.now() + this.skewMs;
  }

  serverState(state, why) {
    if (state !== this.server || why !== this.why) {
      this.server = state;
      this.why = why;
      this.changed("connection");
    }
  }

  changed(...kinds) {
    for (const kind of kinds) this.dirty.add(kind);
    this.plan();
  }

  /** Draw soon, unless a drawing is under way: then what has changed has its turn after it. */
  plan() {
    if (this.planned || this.steps.length > 0 || this.dirty.size === 0) return;
    this.planned = true;
    setTimeout(() => this.draw(), Math.max(0, this.drawnAt + EVERY_MS - performance.now()));
  }

  draw() {
    const { dirty } = this;
    this.dirty = new Set();
    this.planned = false;
    const views = this.views.filter((view) => view.kinds.some((kind) => dirty.has(kind)));
    this.inFrames(views.map((view) => () => view.draw(this, dirty)));
  }

  /** Have `steps` done, one a frame: styles, layout and paint, which follow each, cost more than the scripts do. */
  inFrames(steps) {
    if (steps.length === 0) return;
    if (this.steps.length === 0) requestAnimationFrame(() => this.step());
    this.steps.push(...steps);
  }

  step() {
    try {
      this.steps[0]();
    } catch (error) {
      reportError(error); // a fault of one view: the others go on
    }
    this.steps.shift();
    if (this.steps.length > 0) {
      requestAnimationFrame(() => this.step());
      return;
    }
    this.drawnAt = performance.now();
    this.plan();
  }

  // --- what several views ask

  online() {
    return [...this.nodes.values()].filter((node) => node.state === "online");
  }

  stageTelemetry(node, pipeline, generation, stage) {
    const stages = this.telemetry.get(node)?.stages ?? [];
    return stages.find(
      (one) =>
        one.pipeline === pipeline && one.generation === generation && one.stage === stage,
    );
  }

  /** Items a second through a stage, as its node counted them over the last interval. */
  itemsPerSecond(node, telemetry) {
    const interval = this.nodes.get(node)?.telemetry_interval_s ?? 1;
    return telemetry === undefined ? null : telemetry.items / interval;
  }
}

function set(map, name, payload) {
  if (payload === null) map.delete(name);
  else map.set(name, payload);
}

function ratesOf(before, after, span) {
  const grown = (field) => Math.max(0, after[field] - before[field]) / span;
  return { received: grown("network_received_bytes"), sent: grown("network_sent_bytes") };
}
