// The live socket: requests updates of this view and morphs the page. Below it: rows of live lists.

import { setServerTime, updateTimes } from "./times.js";
import { Idiomorph } from "./vendor/idiomorph.js";

const STALE_AFTER = 13_000; // the server sends a message every 2 s
const LONGEST_PAUSE = 10_000;
const EXTRA_PAUSE = 500;
const REFUSALS = 2; // one may be a restart of the dashboard
const RELOAD_PAUSE = 60_000; // a page that reloads itself for nothing must not do so all the time
const SIGNED_OUT = 4401;
const TOKEN_REFUSED = 4403;
const TRY_AGAIN_LATER = 1013;

const CAN_INFLATE = typeof DecompressionStream !== "undefined";

async function inflate(data) {
  if (typeof data === "string") return data;
  return new Response(data.stream().pipeThrough(new DecompressionStream("deflate"))).text();
}

const PRESERVED = new Set(["open", "aria-selected", "data-tinted", "data-titled", "style"]);

function shownValue(element) {
  const times = [...element.querySelectorAll("time")];
  return times.length ? times.map((time) => time.dateTime).join() : element.textContent.trim();
}

export function fragment(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

// Morphs an element into the HTML; what a person has opened, typed or ticked stays.
export function morph(element, html) {
  const changed = [];
  Idiomorph.morph(element, fragment(html), {
    morphStyle: "outerHTML",
    callbacks: {
      beforeNodeMorphed(before, after) {
        if (before.nodeType !== Node.ELEMENT_NODE || after.nodeType !== Node.ELEMENT_NODE) return true;
        if (before.tagName === "TIME" && after.tagName === "TIME" && before.dateTime === after.dateTime) return false;
        if (before.tagName === "INPUT" || before.hasAttribute("data-rows")) return false;
        if (before.hasAttribute("data-tint") && shownValue(before) !== shownValue(after)) changed.push(before);
        return true;
      },
      beforeAttributeUpdated: (name) => !PRESERVED.has(name),
    },
  });
  for (const each of changed) tint(each);
}

function tint(element) {
  element.removeAttribute("data-tinted");
  void element.offsetWidth; // restarts the animation
  element.setAttribute("data-tinted", "");
  element.addEventListener("animationend", () => element.removeAttribute("data-tinted"), { once: true });
}

// A banner that comes or goes must not move the row under the pointer: the height changes when the pointer leaves.
function holdPlace(region) {
  const rows = document.querySelector("[data-rows]:hover");
  if (!rows || region.style.height) return;
  const { height, marginBlockEnd } = getComputedStyle(region);
  Object.assign(region.style, { height, marginBlockEnd });
  rows.addEventListener("pointerleave", () => Object.assign(region.style, { height: "", marginBlockEnd: "" }), {
    once: true,
  });
}

// To the sign-in page, or to a page with a new token: the server decides.
function reloadPage() {
  if (Date.now() - Number(sessionStorage.getItem("reloaded") ?? 0) < RELOAD_PAUSE) return false;
  sessionStorage.setItem("reloaded", Date.now());
  location.reload();
  return true;
}

// A refused handshake has no reason that a script may read, so the page itself is requested.
async function sessionHasEnded() {
  try {
    const response = await fetch(location.href, { method: "HEAD", redirect: "manual", cache: "no-store" });
    return response.status === 401 || response.type === "opaqueredirect";
  } catch {
    return false; // the dashboard cannot be reached
  }
}

// Requests are answered, but the socket is refused again and again: the server says what the proxy in front does wrong.
async function whyRefused(base) {
  try {
    const response = await fetch(`${base}/live?origin=${encodeURIComponent(location.origin)}`, { cache: "no-store" });
    return response.ok ? (await response.json()).why : "";
  } catch {
    return ""; // the dashboard cannot be reached, or something else answers
  }
}

export class Live {
  #socket = null;
  #pause = 500;
  #receivedAt = Date.now();
  #received = Promise.resolve();
  #extra = [];
  #sentExtra = [];
  #extraTimer = null;
  #refused = 0;
  #why = "";
  #rows;
  #view;
  #base;
  #status = document.getElementById("live");

  constructor(rows) {
    const { view, base } = document.body.dataset;
    this.#rows = rows;
    this.#view = view;
    this.#base = base;
  }

  start() {
    this.#connect();
    setInterval(() => this.#check(), 1000);
    addEventListener("pageshow", (event) => event.persisted && this.#connect());
    addEventListener("pagehide", () => this.#socket?.close());
  }

  // Requests updates of rows that are still shown though they left the page. With a pause, since each update may push
  // more rows off the page.
  setExtra(keys) {
    this.#extra = keys;
    this.#extraTimer ??= setTimeout(() => {
      this.#extraTimer = null;
      if (this.#extra.join() !== this.#sentExtra.join()) this.#request();
    }, EXTRA_PAUSE);
  }

  #connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}${this.#base}/live`);
    let opened = false;
    this.#socket = socket;
    socket.addEventListener("open", () => {
      opened = true;
      this.#refused = 0;
      this.#explain("");
      this.#request({ token: document.body.dataset.token });
    });
    socket.addEventListener("message", (event) => this.#receive(inflate(event.data)));
    socket.addEventListener("close", (event) => this.#lost(socket, event, opened));
  }

  #request(more = {}) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#sentExtra = this.#extra;
    this.#socket.send(JSON.stringify({ ...more, view: this.#view, extra: this.#extra, deflate: CAN_INFLATE }));
  }

  async #lost(socket, { code, reason }, opened) {
    if (socket !== this.#socket) return;
    if (code === TRY_AGAIN_LATER) this.#show("failing", reason);
    else this.#show(Date.now() - this.#receivedAt > STALE_AFTER ? "stale" : "reconnecting");
    const ended = code === SIGNED_OUT || code === TOKEN_REFUSED || (!opened && (await sessionHasEnded()));
    if (ended && reloadPage()) return;
    this.#refused = opened ? 0 : this.#refused + 1;
    if (this.#refused >= REFUSALS) this.#explain(await whyRefused(this.#base));
    const pause = this.#pause * (0.75 + Math.random() / 2);
    this.#pause = Math.min(LONGEST_PAUSE, this.#pause * 2);
    setTimeout(() => this.#connect(), pause);
  }

  // Inflating is asynchronous; messages are applied in order.
  #receive(text) {
    this.#received = this.#received.then(async () => this.#apply(JSON.parse(await text))).catch(reportError);
  }

  #apply(message) {
    this.#receivedAt = Date.now();
    this.#pause = 500;
    setServerTime(message.at);
    if (message.token) document.body.dataset.token = message.token; // for forms, fetches and the next connection
    for (const [name, html] of Object.entries(message.regions ?? {})) {
      const region = document.getElementById(`region-${name}`);
      if (!region) continue;
      if (name === "shell_banners") holdPlace(region);
      morph(region, html);
    }
    for (const [name, rows] of Object.entries(message.rows ?? {})) this.#rows.update(name, rows);
    updateTimes();
    this.#show(message.error ? "failing" : "live", message.error?.message);
    document.dispatchEvent(new CustomEvent("monitor:update", { detail: message }));
  }

  // In a banner of its own, since the others are replaced by each update.
  #explain(why) {
    if (why === this.#why) return;
    this.#why = why;
    const banners = document.getElementById("not-live");
    banners.replaceChildren();
    if (!why) return;
    const banner = fragment('<div class="banner bad"><span class="glyph" aria-hidden="true">!</span><p></p></div>');
    banner.querySelector("p").textContent = why;
    banners.append(banner);
    this.#show("failing");
  }

  #check() {
    if (Date.now() - this.#receivedAt > STALE_AFTER) this.#show("stale");
  }

  #show(state, why = this.#why) {
    if (this.#why && state !== "live") state = "failing";
    const since = new Date(this.#receivedAt).toLocaleTimeString(undefined, { hour12: false });
    const words = { live: "live", reconnecting: "reconnecting", stale: `stale since ${since}`, failing: "not updated" };
    if (this.#status.textContent !== words[state]) this.#status.textContent = words[state];
    this.#status.dataset.live = state === "failing" ? "stale" : state;
    this.#status.title = why;
  }
}

// Rows of live lists: shown rows change in place, new ones wait; nothing moves under the pointer.
const MOST_EXTRA = 60;
const UNFINISHED = new Set(["pending", "scheduled", "received", "started", "retry", "lost"]);

class RowList {
  #body;
  #html = new Map();
  #order = null;
  #pill = document.getElementById("show-new");
  #onExtra;

  constructor(body, onExtra) {
    this.#body = body;
    this.#onExtra = onExtra;
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

  update({ order, html }) {
    for (const [key, row] of Object.entries(html)) this.#html.set(key, row);
    if (order) this.#order = order;
    const shown = this.#shown();
    for (const key of Object.keys(html)) if (shown.has(key)) morph(shown.get(key), html[key]);
    if (!this.#order) return;
    if (shown.size === 0 || (!this.#waits && !this.#busy)) this.apply();
    else this.#offer(shown);
  }

  // Shows how many rows wait, and requests updates of unfinished rows that left the page but are still shown.
  #offer(shown) {
    const listed = new Set(this.#order);
    const fresh = this.#order.filter((key) => !shown.has(key)).length;
    const left = [...shown].filter(([key, row]) => !listed.has(key) && UNFINISHED.has(row.dataset.state));
    this.#onExtra(left.map(([key]) => key).slice(0, MOST_EXTRA));
    if (!this.#pill || !this.#waits) return;
    this.#pill.hidden = fresh === 0;
    const all = fresh > 0 && fresh === this.#order.length;
    this.#pill.textContent = `+${fresh}${all ? " or more" : ""} new`;
  }

  // Shows exactly the rows of the page, in their order.
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
    this.#onExtra([]);
    updateTimes(this.#body);
    this.#body.dispatchEvent(new Event("monitor:rows", { bubbles: true }));
  }
}

export class Rows {
  #lists = new Map();
  #onExtra = () => {};

  onExtra(callback) {
    this.#onExtra = callback;
  }

  update(name, rows) {
    const body = document.getElementById(`region-${name}`);
    if (!body) return;
    if (!this.#lists.has(name)) this.#lists.set(name, new RowList(body, (keys) => this.#onExtra(keys)));
    this.#lists.get(name).update(rows);
  }
}
