// <time data-time>: "ago" and "since" keep counting; "clock" is the local time of day. Absolute time on hover.
const SLOWEST = 60_000;

export function span(seconds) {
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  return seconds < 60 ? `${Math.floor(seconds)} s` : longSpan(seconds);
}

// One minute or more: 3 m 12 s, 2 h 5 m, 3 d 4 h.
export function longSpan(seconds) {
  const parts = [
    ["d", 86400, "h", 3600],
    ["h", 3600, "m", 60],
    ["m", 60, "s", 1],
  ];
  const [unit, size, smaller, part] = parts.find(([, each]) => seconds >= each);
  return `${Math.floor(seconds / size)} ${unit} ${Math.floor((seconds % size) / part)} ${smaller}`;
}

function ago(seconds) {
  if (seconds < -1) return `in ${coarse(-seconds)}`;
  return seconds < 1.5 ? "just now" : `${coarse(seconds)} ago`;
}

function coarse(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} d`;
}

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hour12: false,
});
const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

let skew = 0; // the server's clock minus the browser's, so that a wrong clock here shows no wrong ages

export function setServerTime(seconds) {
  skew = seconds * 1000 - Date.now();
}

export function updateTimes(root = document) {
  const now = Date.now() + skew;
  for (const element of root.querySelectorAll("time[data-time]")) {
    const at = Date.parse(element.dateTime);
    const seconds = (now - at) / 1000;
    const kind = element.dataset.time;
    const text = kind === "clock" ? clock.format(at) : kind === "since" ? span(Math.max(0, seconds)) : ago(seconds);
    if (element.textContent !== text) element.textContent = text;
    if (!element.dataset.titled) {
      element.title = absolute.format(at);
      element.dataset.titled = "1";
    }
  }
}

export function startTimes() {
  updateTimes();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  setInterval(updateTimes, Math.min(still ? 5000 : 1000, SLOWEST));
}
