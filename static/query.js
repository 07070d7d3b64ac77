// Completion in the filter field: fields, then values of this list, then recorded names that contain the text.
const MOST = 8;
const PAUSE = 150; // milliseconds after the last key
const SEARCHED = new Set(["name", "queue", "worker"]);

function token(input) {
  const before = input.value.slice(0, input.selectionStart);
  return /[^\s()]*$/.exec(before)[0];
}

// The word in parts: name:"shop has the field name and the part shop of a value, -na only the part of a field.
function parts(word) {
  const [, negated, field, value] = /^(-?)(?:([a-z]+):)?"?(.*)$/is.exec(word);
  return { negated, field: field?.toLowerCase(), value: value.toLowerCase() };
}

// Completions of the word before the caret: [text, help] pairs. Values that begin with it come first.
function suggestions(word, more = []) {
  const { negated, field, value } = parts(word);
  if (!field && !value) return [];
  if (!field)
    return fields()
      .filter(([text]) => text.startsWith(value))
      .map(([text, help]) => [negated + text, help]);
  const known = new Map([...values(), ...more].filter(([text]) => text.startsWith(`${field}:`)));
  const bare = (text) => parts(text).value.replace(/"$/, "");
  const found = [...known].filter(([text]) => bare(text).includes(value) && bare(text) !== value);
  const first = found.filter(([text]) => bare(text).startsWith(value));
  return [...new Set([...first, ...found])].slice(0, MOST).map(([text, help]) => [negated + text, help]);
}

// Terms for recorded names that contain the value, beyond those of the list.
async function search(field, value, signal) {
  const { base, view } = document.body.dataset;
  const cluster = new URLSearchParams(view.split("?")[1]).get("cluster");
  const query = new URLSearchParams({ q: value, limit: MOST, ...(cluster && { cluster }) });
  const response = await fetch(`${base}/api/v1/search?${query}`, { signal });
  if (!response.ok) return [];
  const { items } = await response.json();
  return items.filter((item) => item.kind === field && item.term).map((item) => [item.term, ""]);
}

function fields() {
  return [...document.querySelectorAll("[data-field]")].map(({ dataset }) => [`${dataset.field}:`, dataset.help]);
}

function values() {
  const states = document.getElementById("fields").dataset.states.split(" ");
  const known = new Map(states.map((word) => [`state:${word}`, ""]));
  for (const facet of document.querySelectorAll("[data-term]")) {
    known.set(facet.dataset.term, facet.querySelector(".count")?.textContent ?? "");
  }
  return [...known];
}

// Control and format characters are shown as code points, as on the pages.
const visible = (text) =>
  text.replace(/[\p{Cc}\p{Cf}]/gu, (each) => `⟦U+${each.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟧`);

class Completion {
  #input;
  #list = document.getElementById("completions");
  #at = -1;
  #fetching = null;
  #timer = 0;

  constructor(input) {
    this.#input = input;
    input.addEventListener("input", () => {
      this.#offer();
      this.#fetch();
    });
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("blur", () => this.#close());
    this.#list.addEventListener("mousedown", (event) => {
      event.preventDefault();
      this.#insert(event.target.closest("li"));
    });
  }

  // An answer that comes late is used only if the word is still the same.
  #fetch() {
    clearTimeout(this.#timer);
    this.#fetching?.abort();
    const word = token(this.#input);
    const { field, value } = parts(word);
    if (!SEARCHED.has(field) || !value) return;
    this.#timer = setTimeout(async () => {
      this.#fetching = new AbortController();
      try {
        const more = await search(field, value, this.#fetching.signal);
        if (word === token(this.#input) && document.activeElement === this.#input && this.#at < 0) this.#offer(more);
      } catch (error) {
        if (error.name !== "AbortError") this.#input.title = `No more suggestions: ${error.message}`;
      }
    }, PAUSE);
  }

  #offer(more) {
    const items = suggestions(token(this.#input), more).map(([text, help], index) => {
      const item = document.createElement("li");
      item.setAttribute("role", "option");
      item.id = `completion-${index}`;
      item.dataset.text = text;
      item.append(Object.assign(document.createElement("code"), { textContent: visible(text) }));
      if (help) item.append(Object.assign(document.createElement("span"), { textContent: help }));
      return item;
    });
    this.#list.replaceChildren(...items);
    this.#show(items.length > 0);
    this.#point(-1);
  }

  #show(open) {
    this.#list.hidden = !open;
    this.#input.setAttribute("aria-expanded", String(open));
  }

  #close() {
    this.#show(false);
    this.#point(-1);
  }

  #point(at) {
    this.#at = at;
    for (const [index, item] of [...this.#list.children].entries())
      item.setAttribute("aria-selected", String(index === at));
    if (at < 0) this.#input.removeAttribute("aria-activedescendant");
    else this.#input.setAttribute("aria-activedescendant", `completion-${at}`);
  }

  #key(event) {
    if (this.#list.hidden) return;
    const length = this.#list.children.length;
    if (event.key === "ArrowDown") this.#point((this.#at + 1) % length);
    else if (event.key === "ArrowUp") this.#point((Math.max(0, this.#at) + length - 1) % length);
    else if (event.key === "Escape") this.#close();
    else if (event.key === "Enter" && this.#at >= 0) this.#insert(this.#list.children[this.#at]);
    else if (event.key === "Tab" && this.#at >= 0) this.#insert(this.#list.children[this.#at]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #insert(item) {
    if (!item) return;
    const input = this.#input;
    const end = input.selectionStart;
    const start = end - token(input).length;
    const text = item.dataset.text + (item.dataset.text.endsWith(":") ? "" : " ");
    input.setRangeText(text, start, end, "end");
    this.#offer();
  }
}

export function startCompletion() {
  const input = document.getElementById("query");
  if (input) new Completion(input);
}
