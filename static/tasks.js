import { startExport } from "./export.js";
import { startCompletion } from "./query.js";

// The list: the selection and the actions that it allows. The task: checks JSON while it is typed.
const selection = document.getElementById("selection");

function count(rows, attribute) {
  return rows.filter((row) => row.hasAttribute(attribute)).length;
}

function label(button, verb, number, selected) {
  if (!button) return;
  button.hidden = number === 0;
  button.disabled = number === 0;
  const skipped = number < selected ? ` of ${selected}` : "";
  button.textContent = `${verb} ${number}${skipped} task${(skipped ? selected : number) === 1 ? "" : "s"}`;
}

// All matching tasks, on every page of the list; the next step is a preview.
function labelAll(button, verb) {
  if (!button) return;
  const { verbs = "", count: matching } = document.getElementById("region-bulk").dataset;
  button.hidden = !verbs.split(" ").includes(verb);
  button.disabled = button.hidden;
  button.textContent = `${verb[0].toUpperCase()}${verb.slice(1)} all ${matching}…`;
}

function updateButtons() {
  const rows = [...selection.querySelectorAll("tbody tr:has(.pick input:checked)")];
  const counted = document.getElementById("selected-count");
  const retry = document.getElementById("retry-selected");
  const revoke = document.getElementById("revoke-selected");
  const everything = document.getElementById("pick-matching").checked;
  counted.hidden = everything || rows.length === 0;
  counted.textContent = `${rows.length} selected`;
  if (everything) {
    labelAll(retry, "retry");
    labelAll(revoke, "revoke");
  } else {
    label(retry, "Retry", count(rows, "data-retry"), rows.length);
    label(revoke, "Revoke", count(rows, "data-revoke"), rows.length);
  }
}

function pickRows(checked) {
  for (const box of selection.querySelectorAll("tbody .pick input")) box.checked = checked;
}

function startSelection() {
  const page = document.getElementById("pick-all");
  const matching = document.getElementById("pick-matching");
  page.hidden = false;
  page.addEventListener("change", () => pickRows(page.checked));
  matching.addEventListener("change", () => {
    page.checked = matching.checked;
    pickRows(matching.checked);
  });
  // Unticking a row ends "Select all".
  selection.addEventListener("change", (event) => {
    if (event.target.closest(".pick") && !event.target.checked) {
      matching.checked = false;
      page.checked = false;
    }
    updateButtons();
  });
  if (matching.checked) {
    page.checked = true;
    pickRows(true);
  }
  document.addEventListener("monitor:update", updateButtons);
  selection.addEventListener("monitor:rows", updateButtons);
  addEventListener("pageshow", updateButtons);
  updateButtons();
}

function problem(text, kind) {
  try {
    const value = JSON.parse(text);
    const fits =
      kind === "array" ? Array.isArray(value) : value !== null && typeof value === "object" && !Array.isArray(value);
    return fits ? "" : `This must be a JSON ${kind}, such as ${kind === "array" ? '[1, "x"]' : '{"key": 1}'}.`;
  } catch (error) {
    return error.message;
  }
}

// The error is shown beside the field: the browser's own bubble would take the focus back from the next field.
function noteOf(area) {
  const note = document.createElement("span");
  note.id = `${area.name}-problem`;
  note.className = "field-error";
  note.setAttribute("role", "alert");
  area.closest("label").after(note);
  area.setAttribute("aria-describedby", note.id);
  return note;
}

function startEditor() {
  for (const area of document.querySelectorAll("[data-json]")) {
    const note = noteOf(area);
    const check = () => {
      const wrong = area.value && problem(area.value, area.dataset.json);
      area.setCustomValidity(wrong);
      area.setAttribute("aria-invalid", String(wrong !== ""));
      return wrong;
    };
    area.addEventListener("input", () => !check() && note.replaceChildren());
    area.addEventListener("change", () => note.replaceChildren(check()));
  }
}

if (selection) startSelection();
if (document.getElementById("export")) startExport();
startCompletion();
startEditor();
