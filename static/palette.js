// Ctrl-K: goes to a page, task, worker, queue or view by name, and runs actions of the page, all by keyboard.
const PAUSE = 120; // milliseconds after the last key
const MOST_LOCAL = 8;
const ACTIONS = [
  "main [data-hotkey]",
  "main .page-head .actions :is(a, button)",
  "main .bulk button",
  "main [data-act]",
].join();
const KINDS = { name: "task name", view: "saved view" };

const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
const labelOf = (element) =>
  element.dataset.act || element.getAttribute("aria-label") || element.textContent.replace(/\s+/g, " ").trim();
const offered = (element) => !element.disabled && !element.hidden && element.checkVisibility();

const actionOf = (element) => ({ kind: "action", label: labelOf(element), run: () => element.click() });

// Actions of this page, all pages, and global actions.
function localItems() {
  const base = document.body.dataset.base;
  const help = document.getElementById("help");
  const links = [...document.querySelectorAll("#region-shell_nav li > a")];
  const pages = links.map((link) => [link.querySelector("span").textContent, link.href]);
  const items = [
    ...[...document.querySelectorAll(ACTIONS)].filter(offered).map(actionOf),
    ...[...pages, ["Saved views", `${base}/views`]].map(([label, address]) => ({ kind: "page", label, address })),
    actionOf(document.getElementById("theme")),
    { kind: "action", label: "Keyboard help", run: () => help.showModal() },
  ];
  return [...new Map(items.map((item) => [`${item.kind} ${item.label}`, item])).values()];
}

function fits(item, text) {
  const label = item.label.toLowerCase();
  return words(text).every((word) => label.includes(word));
}

class Palette {
  #dialog = document.getElementById("palette");
  #input = document.getElementById("palette-text");
  #list = document.getElementById("palette-list");
  #note = document.getElementById("palette-note");
  #local = [];
  #items = [];
  #at = 0;
  #fetching = null;
  #timer = 0;

  constructor() {
    this.#input.addEventListener("input", () => this.#search());
    this.#input.addEventListener("keydown", (event) => this.#key(event));
    this.#list.addEventListener("mousedown", (event) => event.preventDefault());
    this.#list.addEventListener("click", (event) =>
      this.#open([...this.#list.children].indexOf(event.target.closest("li"))),
    );
    this.#dialog.addEventListener("close", () => this.#fetching?.abort());
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
  }

  toggle() {
    if (this.#dialog.open) {
      this.#dialog.close();
      return;
    }
    if (document.querySelector("dialog[open]")) return;
    this.#local = localItems();
    this.#input.value = "";
    this.#dialog.showModal();
    this.#search();
  }

  #search() {
    this.#fetching?.abort();
    clearTimeout(this.#timer);
    const text = this.#input.value.trim();
    this.#show(text, []);
    this.#note.textContent = "";
    if (text) this.#timer = setTimeout(() => this.#fetch(text), PAUSE);
  }

  async #fetch(text) {
    this.#fetching = new AbortController();
    const { signal } = this.#fetching;
    const query = new URLSearchParams({ q: text });
    const cluster = new URLSearchParams(location.search).get("cluster");
    if (cluster) query.set("cluster", cluster);
    try {
      const response = await fetch(`${document.body.dataset.base}/api/v1/search?${query}`, { signal });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error.message);
      this.#show(text, answer.items);
    } catch (error) {
      if (!signal.aborted) this.#note.textContent = `Search failed; showing pages and actions only. ${error.message}`;
    }
  }

  #show(text, found) {
    const base = document.body.dataset.base;
    const chosen = this.#items[this.#at];
    const hits = found.map((hit) => ({ ...hit, address: base + hit.path }));
    const local = this.#local.filter((item) => fits(item, text)).slice(0, text ? MOST_LOCAL : undefined);
    const tasks = hits.filter((hit) => hit.kind === "task");
    const rest = hits.filter((hit) => hit.kind !== "task");
    const asText = { kind: "search", label: `Search tasks for “${text}”`, address: this.#listAddress(text) };
    this.#items = [...tasks, ...local, ...rest, ...(text ? [asText] : [])];
    this.#list.replaceChildren(...this.#items.map(option));
    // A late answer from the server must not change what Enter will open.
    const same =
      this.#at > 0 ? this.#items.findIndex((item) => item.label === chosen?.label && item.kind === chosen?.kind) : 0;
    this.#point(Math.max(0, same));
  }

  #listAddress(text) {
    const query = new URLSearchParams(location.search).has("cluster")
      ? new URLSearchParams({ q: text, cluster: new URLSearchParams(location.search).get("cluster") })
      : new URLSearchParams({ q: text });
    return `${document.body.dataset.base}/tasks?${query}`;
  }

  #point(at) {
    this.#at = at;
    for (const [index, item] of [...this.#list.children].entries()) {
      item.setAttribute("aria-selected", String(index === at));
    }
    const item = this.#list.children[at];
    if (item) this.#input.setAttribute("aria-activedescendant", item.id);
    else this.#input.removeAttribute("aria-activedescendant");
    item?.scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    const length = this.#items.length;
    const to = { ArrowDown: this.#at + 1, ArrowUp: this.#at - 1, PageDown: this.#at + 8, PageUp: this.#at - 8 }[
      event.key
    ];
    if (to !== undefined && length) {
      const step = Math.abs(to - this.#at);
      this.#point(step === 1 ? (to + length) % length : Math.min(length - 1, Math.max(0, to)));
    } else if (event.key === "Enter") this.#open(this.#at);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #open(at) {
    const item = this.#items[at];
    if (!item) return;
    this.#dialog.close();
    if (item.run) item.run();
    else location.assign(item.address);
  }
}

function option(item, index) {
  const element = document.createElement("li");
  element.setAttribute("role", "option");
  element.id = `palette-${index}`;
  const label = Object.assign(document.createElement("span"), { className: "clip", textContent: item.label });
  if (item.kind === "task") label.classList.add("code");
  element.append(label);
  if (item.detail) {
    element.append(
      Object.assign(document.createElement("span"), { className: "clip muted", textContent: item.detail }),
    );
  }
  const kind = Object.assign(document.createElement("span"), {
    className: "kind",
    textContent: KINDS[item.kind] ?? item.kind,
  });
  element.append(kind);
  return element;
}

export function startPalette() {
  const palette = new Palette();
  const button = document.getElementById("palette-open");
  button.hidden = false;
  if (/Mac|iPhone|iPad/.test(navigator.userAgent)) button.querySelector("kbd").textContent = "⌘ K";
  button.addEventListener("click", () => palette.toggle());
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "k" || !(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey) return;
    event.preventDefault();
    palette.toggle();
  });
}
