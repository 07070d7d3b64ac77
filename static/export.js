// Saves all matching tasks as a file, with progress and a way to stop.
const BLOB_BYTES = 16 * 1024 * 1024; // then chunks become one Blob, which the browser may keep on disk
const QUOTE = 34;
const LINE = 10;

// Counts rows of CSV or lines of JSON; a line end inside quotes does not end a row.
export class RowCounter {
  rows = 0;
  #quoted = false;
  #csv;

  constructor(csv) {
    this.#csv = csv;
    this.rows = csv ? -1 : 0; // not counting the header
  }

  add(bytes) {
    for (const byte of bytes) {
      if (byte === QUOTE && this.#csv) this.#quoted = !this.#quoted;
      else if (byte === LINE && !this.#quoted) this.rows += 1;
    }
  }
}

const number = (value) => (value < 10_000 ? String(value) : value.toLocaleString("en").replaceAll(",", "\u202f"));

class Export {
  #panel = document.getElementById("export");
  #bar = this.#panel.querySelector("progress");
  #status = this.#panel.querySelector("[role=status]");
  #stop = this.#panel.querySelector("button");
  #running = null;

  constructor() {
    this.#stop.addEventListener("click", () => this.#running?.abort());
  }

  async run(link) {
    if (this.#running) return;
    this.#running = new AbortController();
    this.#panel.hidden = this.#stop.hidden = this.#bar.hidden = false;
    this.#bar.removeAttribute("value");
    this.#status.textContent = "Waiting for the first rows";
    try {
      await this.#fetch(link, this.#running.signal);
    } catch (error) {
      const stopped = this.#running.signal.aborted;
      this.#status.textContent = stopped ? "Stopped; nothing was saved." : `Nothing was saved: ${error.message}`;
    }
    this.#stop.hidden = this.#bar.hidden = true;
    this.#running = null;
  }

  async #fetch(link, signal) {
    const response = await fetch(link.href, { signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    const total = Number(response.headers.get("X-Total-Count"));
    const exact = response.headers.get("X-Total-Exact") === "true";
    const counter = new RowCounter(link.download.endsWith(".csv"));
    let file = new Blob([]);
    let chunks = [];
    let size = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      counter.add(value);
      chunks.push(value);
      size += value.length;
      if (size > BLOB_BYTES) {
        file = new Blob([file, ...chunks]);
        [chunks, size] = [[], 0];
      }
      this.#showProgress(Math.max(0, counter.rows), total, exact);
    }
    this.#save(new Blob([file, ...chunks]), link.download);
    this.#status.textContent = `Saved ${number(Math.max(0, counter.rows))} rows as ${link.download}.`;
  }

  #showProgress(rows, total, exact) {
    if (exact) {
      this.#bar.max = Math.max(1, total);
      this.#bar.value = Math.min(rows, total);
    }
    const of = exact ? ` of ${number(total)}` : rows < total ? ` of more than ${number(total)}` : "";
    this.#status.textContent = `${number(rows)}${of} rows${exact ? "" : "; total unknown until the end"}`;
  }

  #save(file, name) {
    const address = URL.createObjectURL(file);
    Object.assign(document.createElement("a"), { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }
}

export function startExport() {
  const exporting = new Export();
  for (const link of document.querySelectorAll("a[data-export]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      link.closest("details").open = false;
      exporting.run(link);
    });
  }
}
