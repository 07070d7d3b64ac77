// Rows of live lists: known ones change in place; nothing moves under the pointer, new ones wait.
import { fragment, morph } from "./live.js";
import { retell } from "./times.js";

const MOST_HELD = 60;
const WORTH_HOLDING = new Set(["pending", "scheduled", "received", "started", "retry", "lost"]);

class RowList {
  #body;
  #html = new Map();
  #order = null;
  #pill = document.getElementById("show-new");
  #hold;

  constructor(body, hold) {
    this.#body = body;
    this.#hold = hold;
    body.addEventListener("pointerleave", () => !this.#waits && this.apply());
    if (this.#waits) this.#pill?.addEventListener("click", () => this.apply());
  }

  get #waits() {
    return this.#body.hasAttribute("data-hold");
  }

  get #busy() {
    return this.#body.matches(":hover") || this.#body.contains(document.activeElement);
  }

  #shown() {
    return new Map([...this.#body.children].map((row) => [row.dataset.key, row]));
  }

  hear({ order, html }) {
    for (const [key, row] of Object.entries(html)) this.#html.set(key, row);
    if (order) this.#order = order;
    const shown = this.#shown();
    for (const key of Object.keys(html)) if (shown.has(key)) morph(shown.get(key), html[key]);
    if (!this.#order) return;
    if (shown.size === 0 || (!this.#waits && !this.#busy)) this.apply();
    else this.#offer(shown);
  }

  // Says what waits, and asks to be told more of rows that the page no longer has but the reader still sees.
  #offer(shown) {
    const listed = new Set(this.#order);
    const fresh = this.#order.filter((key) => !shown.has(key)).length;
    const left = [...shown].filter(([key, row]) => !listed.has(key) && WORTH_HOLDING.has(row.dataset.state));
    this.#hold(left.map(([key]) => key).slice(0, MOST_HELD));
    if (!this.#pill || !this.#waits) return;
    this.#pill.hidden = fresh === 0;
    const all = fresh > 0 && fresh === this.#order.length;
    this.#pill.textContent = `+${fresh}${all ? " or more" : ""} new`;
  }

  // Puts exactly the rows of the page in place, in their order.
  apply() {
    if (!this.#order) return;
    const shown = this.#shown();
    const listed = new Set(this.#order);
    for (const [key, row] of shown) if (!listed.has(key)) row.remove();
    let place = this.#body.firstElementChild;
    for (const key of this.#order) {
      const row = shown.get(key) ?? fragment(this.#html.get(key));
      if (row === place) place = place.nextElementSibling;
      else this.#body.insertBefore(row, place);
    }
    for (const key of this.#html.keys()) if (!listed.has(key)) this.#html.delete(key);
    if (this.#pill) this.#pill.hidden = true;
    if (this.#order.length) document.getElementById("no-rows")?.remove();
    this.#hold([]);
    retell(this.#body);
    this.#body.dispatchEvent(new Event("monitor:rows", { bubbles: true }));
  }
}

export class Rows {
  #lists = new Map();
  #hold = () => {};

  onHold(hold) {
    this.#hold = hold;
  }

  hear(name, rows) {
    const body = document.getElementById(`region-${name}`);
    if (!body) return;
    if (!this.#lists.has(name)) this.#lists.set(name, new RowList(body, (keys) => this.#hold(keys)));
    this.#lists.get(name).hear(rows);
  }
}
