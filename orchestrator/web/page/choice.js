// Which model the charts, the plans and the box for a picture are about.

import { byId, el } from "./dom.js";
import { compareNames } from "./layout.js";

export class Choice {
  constructor(store) {
    this.store = store;
    this.select = byId("model");
    this.names = "";
    this.model = null;
    this.select.addEventListener("change", () => this.set(this.select.value));
    store.watch(["models", "reset"], () => this.draw());
  }

  set(model) {
    this.model = model;
    this.store.changed("choice");
  }

  draw() {
    const names = [...this.store.models.keys()].sort(compareNames);
    byId("model-choice").hidden = names.length < 2;
    const joined = names.join("\n");
    if (joined !== this.names) {
      this.names = joined;
      this.select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    }
    const model = names.includes(this.model) ? this.model : (names[0] ?? null);
    if (model !== null) this.select.value = model;
    if (model !== this.model) this.set(model);
  }
}
