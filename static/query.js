// Completion in the query bar: the fields of the language, then the values that this list has.
const MOST = 8;

function token(input) {
  const before = input.value.slice(0, input.selectionStart);
  return /[^\s()]*$/.exec(before)[0];
}

// What may stand in the place of the word before the caret: [text, help] pairs.
function suggestions(word) {
  const negated = word.startsWith("-") ? "-" : "";
  const typed = word.slice(negated.length).toLowerCase();
  if (!typed) return [];
  const found = typed.includes(":") ? values() : fields();
  return found
    .filter(([text]) => text.toLowerCase().startsWith(typed) && text.toLowerCase() !== typed)
    .slice(0, MOST)
    .map(([text, help]) => [negated + text, help]);
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

class Completion {
  #input;
  #list = document.getElementById("completions");
  #at = -1;

  constructor(input) {
    this.#input = input;
    input.addEventListener("input", () => this.#offer());
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("blur", () => this.#close());
    this.#list.addEventListener("mousedown", (event) => {
      event.preventDefault();
      this.#take(event.target.closest("li"));
    });
  }

  #offer() {
    const items = suggestions(token(this.#input)).map(([text, help], index) => {
      const item = document.createElement("li");
      item.setAttribute("role", "option");
      item.id = `completion-${index}`;
      item.dataset.text = text;
      item.append(Object.assign(document.createElement("code"), { textContent: text }));
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
    else if (event.key === "Enter" && this.#at >= 0) this.#take(this.#list.children[this.#at]);
    else if (event.key === "Tab" && this.#at >= 0) this.#take(this.#list.children[this.#at]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #take(item) {
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
