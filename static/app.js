// On every page: live updates, times, keys, theme, copy buttons, and what is wrong in the title.
import { startKeys } from "./keys.js";
import { Live, Rows } from "./live.js";
import { startPalette } from "./palette.js";
import { startTimes } from "./times.js";

const YEAR = 31_536_000;

function startTheme() {
  const root = document.documentElement;
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    const path = document.body.dataset.base || "/";
    document.cookie = `celery_monitor_theme=${root.dataset.theme}; path=${path}; max-age=${YEAR}; samesite=strict`;
  });
}

// Users share the HTML of live regions, so their forms come without a token.
function startForms() {
  document.addEventListener("submit", (event) => {
    const field = event.target.querySelector('input[name="csrf_token"]');
    if (field) field.value = document.body.dataset.token;
  });
}

function startCopying() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
    button.dataset.tinted = "";
    setTimeout(() => delete button.dataset.tinted, 600);
  });
}

// The title counts the alerts that fire, else the failures since the tab was last active; the icon changes.
function startTitle() {
  const title = document.title;
  const icon = document.querySelector('link[rel="icon"]');
  const count = (name) => Number(document.getElementById("region-shell_nav")?.dataset[name] ?? 0);
  let seen = count("failed");
  const update = () => {
    if (count("failed") < seen) seen = count("failed");
    const shown = count("firingCount") || count("failed") - seen;
    document.title = shown > 0 ? `(${shown}) ${title}` : title;
    const address = shown > 0 ? icon.dataset.failing : icon.dataset.calm;
    if (icon.getAttribute("href") !== address) icon.setAttribute("href", address);
  };
  document.addEventListener("monitor:update", update);
  const reset = () => {
    seen = count("failed");
    update();
  };
  addEventListener("focus", reset);
  document.addEventListener("visibilitychange", () => !document.hidden && reset());
  update();
}

function startFolding() {
  const narrow = matchMedia("(width < 1200px)");
  const fit = () => {
    for (const element of document.querySelectorAll("[data-narrow-closed]:not([hidden])")) {
      element.toggleAttribute("open", !narrow.matches);
    }
  };
  if (narrow.matches) fit();
  narrow.addEventListener("change", fit);
}

startFolding();
startTimes();
startTheme();
startForms();
startCopying();
startTitle();
// Loaded for those alone who have asked for notifications (alerts.js): each module is a request of a cold page.
if (localStorage.getItem("celery-monitor-notify")) import("./notify.js").then(({ startNotifying }) => startNotifying());
startKeys();
startPalette();
const rows = new Rows();
const live = new Live(rows);
rows.onExtra((keys) => live.setExtra(keys));
live.start();
