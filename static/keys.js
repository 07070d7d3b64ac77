// Keyboard shortcuts. Rows are elements with data-key, or rows of other lists that contain a link; the current one has
// aria-selected.
const ROWS = ":is([data-rows] > [data-key], main table.list:not(.tasks) > tbody > tr:has(a))";

const rows = () => [...document.querySelectorAll(ROWS)].filter((row) => row.checkVisibility());
const current = () => document.querySelector(`${ROWS}[aria-selected="true"]`);

function move(step) {
  const all = rows();
  if (!all.length) return;
  const at = all.indexOf(current());
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step))];
  current()?.removeAttribute("aria-selected");
  next.setAttribute("aria-selected", "true");
  next.scrollIntoView({ block: "nearest" });
}

function select() {
  current()?.querySelector('input[type="checkbox"]')?.click();
}

function retry() {
  const row = current();
  if (row && !document.querySelector(`${ROWS} input:checked`)) select();
  const button = document.querySelector('[data-hotkey="r"]');
  if (button && !button.disabled) button.click();
}

const KEYS = {
  "/": () => document.getElementById("search")?.focus(),
  j: () => move(1),
  k: () => move(-1),
  x: select,
  r: retry,
  n: () => document.getElementById("show-new")?.click(),
  Enter: () => current()?.querySelector("a.open, a")?.click(),
  "?": () => document.getElementById("help")?.showModal(),
};

function typing(target) {
  return (
    target instanceof HTMLElement && target.closest("input:not([type=checkbox]), textarea, select, dialog") !== null
  );
}

export function startKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && typing(event.target)) event.target.blur();
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    if (event.key === "Enter" && event.target.closest("a, button, summary, input")) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}
