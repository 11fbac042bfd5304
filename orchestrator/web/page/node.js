// All that is known of one node, in a dialog that follows it.

import { byId, el, setText } from "./dom.js";
import { bytes, bytesPerSecond, percent, seconds } from "./format.js";
import { stateOf } from "./picture.js";

export class NodeDialog {
  constructor(store) {
    this.store = store;
    this.dialog = byId("node");
    this.name = null;
    this.form = "";
    byId("node-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    });
    this.dialog.addEventListener("close", () => {
      this.name = null;
    });
    store.watch(["nodes", "telemetry", "models", "metrics", "reset"], () => this.draw());
  }

  open(name) {
    this.name = name;
    this.form = "";
    this.draw();
    this.dialog.showModal();
  }

  draw() {
    if (this.name === null) return;
    setText(byId("node-name"), this.name);
    const rows = facts(this.store, this.name);
    const form = JSON.stringify(rows);
    if (form === this.form) return;
    this.form = form;
    byId("node-facts").replaceChildren(
      ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    );
  }
}

function facts(store, name) {
  const node = store.nodes.get(name);
  if (node === undefined) return [["state", "gone: nothing is retained of it any more"]];
  const rows = [["state", stateOf(store, name)]];
  const add = (label, value) => {
    if (value !== null && value !== undefined && value !== "") rows.push([label, value]);
  };
  add("why", node.reason || store.metrics?.nodes?.[name]?.reason || store.cordons.get(name)?.reason);
  const telemetry = store.telemetry.get(name);
  if (telemetry !== undefined) {
    add("CPU", `${percent(telemetry.cpu_percent)} of what it may use`);
    add("memory", `${bytes(telemetry.memory_used_bytes)} of ${bytes(telemetry.memory_limit_bytes)}`);
    const flow = store.rates.get(name);
    if (flow !== undefined) add("network", `${bytesPerSecond(flow.received)} in, ${bytesPerSecond(flow.sent)} out`);
    if (telemetry.up_bytes_per_s) {
      add("link", `${bytesPerSecond(telemetry.down_bytes_per_s)} down, ${bytesPerSecond(telemetry.up_bytes_per_s)} up, as measured`);
    }
    add("round trip to the broker", telemetry.round_trip_s === null ? null : seconds(telemetry.round_trip_s));
    add("disk", telemetry.disk_free_bytes ? `${bytes(telemetry.disk_free_bytes)} free` : null);
    add("up", seconds(telemetry.uptime_s));
    for (const stage of telemetry.stages) {
      add(
        `stage ${stage.stage} of ${stage.model}`,
        `${stage.items} items, ${seconds(stage.compute_s)} each, ${stage.queue} waiting (generation ${stage.generation})`,
      );
    }
  }
  const { hardware } = node;
  if (hardware) {
    add("CPUs", `${hardware.cpu}${hardware.cpu_limited_by ? `, limited by ${hardware.cpu_limited_by}` : ""} of ${hardware.cores}`);
    add("machine", [hardware.cpu_model, hardware.architecture, hardware.system].filter(Boolean).join(", "));
  }
  add("runtimes", Object.entries(node.runtimes ?? {}).map(([one, version]) => `${one} ${version}`).join(", "));
  add("zone", node.zone);
  add("host", `${node.host}, process ${node.pid}`);
  add("version", node.version);
  return rows;
}
