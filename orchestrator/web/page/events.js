// What happens, newest first. Of the thousand that are kept, so many stand in the document.

import { byId, el, setText } from "./dom.js";
import { clock } from "./format.js";

const MOST_SHOWN = 150;
/** Rows that are made in one frame. */
const AT_ONCE = 40;
const LOUD = new Set(["node_joined", "node_left", "replanned", "pipeline_active", "model_lost", "model_asked"]);
const BAD = /lost|failed|refused|poisoned|dropped|forged|error|full|left/;
const SPOKEN_EVERY_MS = 4000;

export class Events {
  constructor(store) {
    this.store = store;
    this.list = byId("events-list");
    this.filter = byId("events-filter");
    this.pause = byId("events-pause");
    this.drawn = 0;
    this.older = [];
    this.spokenAt = 0;
    this.filter.addEventListener("input", () => this.all());
    this.pause.addEventListener("change", () => (this.pause.checked ? this.count() : this.all()));
    store.watch(["events", "reset"], (_, dirty) => (dirty.has("reset") ? this.all() : this.more()));
  }

  matches(event) {
    const wanted = this.filter.value.trim().toLowerCase();
    return wanted === "" || [event.event, event.text, event.node, event.model, event.reason].some((text) => text?.toLowerCase().includes(wanted));
  }

  /** Only what is new is added. */
  more() {
    const { events, eventCount } = this.store;
    if (this.pause.checked || eventCount === this.drawn) {
      this.count();
      return;
    }
    const fresh = events.slice(-Math.min(events.length, eventCount - this.drawn));
    this.drawn = eventCount;
    const rows = fresh.filter((event) => this.matches(event)).slice(-MOST_SHOWN).reverse().map(row);
    this.list.prepend(...rows);
    while (this.list.childElementCount > MOST_SHOWN) this.list.lastElementChild.remove();
    this.count();
    this.speak(fresh);
  }

  all() {
    const found = this.store.events.filter((event) => this.matches(event));
    const shown = found.slice(-MOST_SHOWN).reverse();
    this.list.replaceChildren(...shown.slice(0, AT_ONCE).map(row));
    this.drawn = this.store.eventCount;
    this.count();
    this.older = shown.slice(AT_ONCE);
    this.rest(this.older);
  }

  /** Older rows in the next frames. */
  rest(older) {
    if (older.length === 0) return;
    this.store.inFrames([
      () => {
        if (this.older !== older) return; // others are wanted by now
        this.list.append(...older.slice(0, AT_ONCE).map(row));
        this.older = older.slice(AT_ONCE);
        this.rest(this.older);
      },
    ]);
  }

  count() {
    const { events, eventCount } = this.store;
    const behind = eventCount - this.drawn;
    const kept = `${events.length} kept here`;
    setText(byId("events-count"), this.pause.checked && behind > 0 ? `${kept}, ${behind} since you paused` : kept);
    byId("events-empty").hidden = this.list.childElementCount > 0;
    setText(byId("events-empty"), events.length === 0 ? "Nothing has happened since this page's server began." : "Nothing of what is kept has these words.");
  }

  /** For those who listen: what matters, and no more than they can hear. */
  speak(fresh) {
    const told = fresh.filter((event) => LOUD.has(event.event)).pop();
    const now = performance.now();
    if (told !== undefined && now - this.spokenAt > SPOKEN_EVERY_MS) {
      this.spokenAt = now;
      setText(byId("spoken"), told.text);
    }
  }
}

function row(event) {
  return el(
    "li",
    { class: BAD.test(event.event) ? "is-bad" : LOUD.has(event.event) ? "is-loud" : "" },
    el("time", { datetime: event.at }, clock(event.at)),
    el("span", { class: "kind" }, event.event),
    el("span", { class: "text" }, event.text),
  );
}
