// The button that turns notifications of this browser on and off.
import { startNotifying, toggle, wanted } from "./notify.js";

const button = document.getElementById("notify");
const show = () => {
  button.textContent = wanted() ? "Stop notifying this browser" : "Notify me in this browser";
};
if ("Notification" in window) {
  button.hidden = false;
  show();
  button.addEventListener("click", async () => {
    if (await toggle()) startNotifying();
    show();
  });
}
