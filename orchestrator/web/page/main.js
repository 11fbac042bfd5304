// Puts the page together.

import { makeCharts } from "./charts.js";
import { Choice } from "./choice.js";
import { byId, setText } from "./dom.js";
import { Events } from "./events.js";
import { digits, seconds } from "./format.js";
import { Job } from "./job.js";
import { NodeDialog } from "./node.js";
import { Picture } from "./picture.js";
import { Plans } from "./plans.js";
import { follow } from "./socket.js";
import { Store } from "./store.js";

const THEMES = ["auto", "light", "dark"];

function head(store) {
  const status = byId("connection");
  const [text, state] = connection(store);
  setText(status, text);
  status.dataset.state = state;
  byId("main").classList.toggle("is-old", store.server !== "open" || !store.connected);
  byId("away").hidden = state === "good";
  setText(byId("away"), advice(store));
}

function connection(store) {
  if (store.server !== "open") return ["page away", "bad"];
  if (!store.connected) return ["broker away", "bad"];
  if (store.orchestrator === null) return ["no orchestrator", "bad"];
  if (store.orchestrator.state !== "online") return [`orchestrator ${store.orchestrator.state}`, "bad"];
  return ["connected", "good"];
}

function advice(store) {
  if (store.server !== "open") {
    const why = store.why === "" ? "" : ` (${store.why})`;
    return `The connection to this page's server is away${why}; it is tried again by itself. What you see is what was.`;
  }
  if (!store.connected) {
    return "The connection to the broker is away; it is tried again by itself. What you see is what was.";
  }
  if (store.orchestrator === null) return "No orchestrator has announced itself on this broker. Start one: amp4ec orchestrator";
  return `The orchestrator is ${store.orchestrator.state}: stages finish what they hold, new jobs wait at the broker.`;
}

function summary(store) {
  const { metrics } = store;
  const models = Object.values(metrics?.models ?? {});
  const sum = (field) => models.reduce((total, one) => total + one[field], 0);
  const slowest = Math.max(...models.map((one) => one.latency_p95_s ?? -1));
  const online = store.online().length;
  setText(byId("figure-nodes"), store.nodes.size === online ? String(online) : `${online} of ${store.nodes.size}`);
  setText(byId("figure-models"), String(store.models.size));
  setText(byId("figure-rate"), metrics === null ? "–" : digits(sum("answered_per_s")));
  setText(byId("figure-latency"), slowest < 0 ? "–" : seconds(slowest));
  setText(byId("figure-waiting"), metrics === null ? "–" : `${sum("queued")} + ${sum("in_flight")}`);
}

function theme() {
  const select = byId("theme");
  const set = (name) => {
    document.documentElement.dataset.theme = name;
  };
  select.value = kept();
  set(select.value);
  select.addEventListener("change", () => {
    set(select.value);
    keep(select.value);
  });
}

// Where a browser keeps nothing for us, the switch holds for as long as the page is open.
function kept() {
  try {
    const name = localStorage.getItem("theme");
    return THEMES.includes(name) ? name : "auto";
  } catch {
    return "auto";
  }
}

function keep(name) {
  try {
    localStorage.setItem("theme", name);
  } catch {
    // said above
  }
}

function start() {
  theme();
  const store = new Store();
  store.watch(["connection", "orchestrator"], head);
  store.watch(["nodes", "models", "metrics", "reset"], summary);
  const dialog = new NodeDialog(store);
  const choice = new Choice(store);
  new Picture(store, (node) => dialog.open(node));
  makeCharts(store, choice);
  new Plans(store, choice);
  new Job(store, choice);
  new Events(store);
  follow(
    (frame) => store.take(frame),
    (state, why) => store.serverState(state, why),
  );
}

start();
