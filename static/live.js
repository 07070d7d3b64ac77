// The live socket: says which view this is, morphs what comes back. Then what rows of lists do.

import { retell, serverSaid } from "./times.js";
import { Idiomorph } from "./vendor/idiomorph.js";

const STALE_AFTER = 13_000; // the server says something every 2 s
const LONGEST_PAUSE = 10_000;
const HOLD_PAUSE = 500;

const CAN_INFLATE = typeof DecompressionStream !== "undefined";

async function unpacked(data) {
  if (typeof data === "string") return data;
  return new Response(data.stream().pipeThrough(new DecompressionStream("deflate"))).text();
}

const KEPT = new Set(["open", "aria-selected", "data-tinted", "data-told", "style"]);

function told(element) {
  const times = [...element.querySelectorAll("time")];
  return times.length ? times.map((time) => time.dateTime).join() : element.textContent.trim();
}

export function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

// Changes an element into what the HTML says; what a person has opened, typed or ticked stays.
export function morph(element, html) {
  const changed = [];
  Idiomorph.morph(element, fragment(html), {
    morphStyle: "outerHTML",
    callbacks: {
      beforeNodeMorphed(before, after) {
        if (before.nodeType !== Node.ELEMENT_NODE || after.nodeType !== Node.ELEMENT_NODE) return true;
        if (before.tagName === "TIME" && after.tagName === "TIME" && before.dateTime === after.dateTime) return false;
        if (before.tagName === "INPUT" || before.hasAttribute("data-rows")) return false;
        if (before.hasAttribute("data-tint") && told(before) !== told(after)) changed.push(before);
        return true;
      },
      beforeAttributeUpdated: (name) => !KEPT.has(name),
    },
  });
  for (const each of changed) tint(each);
}

function tint(element) {
  element.removeAttribute("data-tinted");
  void element.offsetWidth; // so that the animation starts anew
  element.setAttribute("data-tinted", "");
  element.addEventListener("animationend", () => element.removeAttribute("data-tinted"), { once: true });
}

// A banner that comes or goes must not move the row that is pointed at: its place changes when the pointer leaves.
function holdPlace(region) {
  const rows = document.querySelector("[data-rows]:hover");
  if (!rows || region.style.height) return;
  const { height, marginBlockEnd } = getComputedStyle(region);
  Object.assign(region.style, { height, marginBlockEnd });
  rows.addEventListener("pointerleave", () => Object.assign(region.style, { height: "", marginBlockEnd: "" }), {
    once: true,
  });
}

export class Live {
  #socket = null;
  #pause = 500;
  #heard = Date.now();
  #taken = Promise.resolve();
  #held = [];
  #asked = [];
  #holding = null;
  #rows;
  #view;
  #base;
  #token;
  #sign = document.getElementById("live");

  constructor(rows) {
    const { view, base, token } = document.body.dataset;
    this.#rows = rows;
    this.#view = view;
    this.#base = base;
    this.#token = token;
  }

  start() {
    this.#connect();
    setInterval(() => this.#check(), 1000);
    addEventListener("pageshow", (event) => event.persisted && this.#connect());
    addEventListener("pagehide", () => this.#socket?.close());
  }

  // Rows that are still shown, though newer ones have taken their place on the page. They are asked for with some rest:
  // each answer may push more rows off the page.
  hold(keys) {
    this.#held = keys;
    this.#holding ??= setTimeout(() => {
      this.#holding = null;
      if (this.#held.join() !== this.#asked.join()) this.#ask();
    }, HOLD_PAUSE);
  }

  #connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const token = encodeURIComponent(this.#token);
    const socket = new WebSocket(`${scheme}://${location.host}${this.#base}/live?token=${token}`);
    this.#socket = socket;
    socket.addEventListener("open", () => this.#ask());
    socket.addEventListener("message", (event) => this.#take(unpacked(event.data)));
    socket.addEventListener("close", () => this.#lost(socket));
  }

  #ask() {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#asked = this.#held;
    this.#socket.send(JSON.stringify({ view: this.#view, held: this.#held, deflate: CAN_INFLATE }));
  }

  #lost(socket) {
    if (socket !== this.#socket) return;
    this.#show(Date.now() - this.#heard > STALE_AFTER ? "stale" : "reconnecting");
    const pause = this.#pause * (0.75 + Math.random() / 2);
    this.#pause = Math.min(LONGEST_PAUSE, this.#pause * 2);
    setTimeout(() => this.#connect(), pause);
  }

  // To unpack takes a moment, and what was said is heard in order.
  #take(coming) {
    this.#taken = this.#taken.then(async () => this.#hear(JSON.parse(await coming))).catch(reportError);
  }

  #hear(said) {
    this.#heard = Date.now();
    this.#pause = 500;
    serverSaid(said.at);
    for (const [name, html] of Object.entries(said.regions ?? {})) {
      const region = document.getElementById(`region-${name}`);
      if (!region) continue;
      if (name === "shell_banners") holdPlace(region);
      morph(region, html);
    }
    for (const [name, rows] of Object.entries(said.rows ?? {})) this.#rows.hear(name, rows);
    retell();
    this.#show(said.error ? "failing" : "live", said.error?.message);
    document.dispatchEvent(new CustomEvent("monitor:heard", { detail: said }));
  }

  #check() {
    if (Date.now() - this.#heard > STALE_AFTER) this.#show("stale");
  }

  #show(state, why = "") {
    const since = new Date(this.#heard).toLocaleTimeString(undefined, { hour12: false });
    const words = { live: "live", reconnecting: "reconnecting", stale: `stale since ${since}`, failing: "not updated" };
    if (this.#sign.textContent !== words[state]) this.#sign.textContent = words[state];
    this.#sign.dataset.live = state === "failing" ? "stale" : state;
    this.#sign.title = why;
  }
}

// Rows of live lists: known ones change in place; nothing moves under the pointer, new ones wait.
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
