// Notifications of this browser, if the viewer has asked for them: of each alert that begins while a page is open.
const WANTED = "celery-monitor-notify";

export const wanted = () =>
  "Notification" in window && Notification.permission === "granted" && localStorage.getItem(WANTED) === "1";

// Asks the browser; must be called from a click. app.js reads WANTED too.
export async function toggle() {
  if (wanted()) localStorage.removeItem(WANTED);
  else if ((await Notification.requestPermission()) === "granted") localStorage.setItem(WANTED, "1");
  return wanted();
}

const firing = () => JSON.parse(document.getElementById("region-shell_nav")?.dataset.firing || "[]");

let started = false;

export function startNotifying() {
  if (started) return;
  started = true;
  let known = new Set(firing().map((alert) => alert.id));
  document.addEventListener("monitor:update", () => {
    const alerts = firing();
    for (const alert of alerts) {
      if (!known.has(alert.id) && wanted())
        new Notification(alert.title, { body: alert.text, tag: `alert-${alert.id}` });
    }
    known = new Set([...known, ...alerts.map((alert) => alert.id)]);
  });
}
