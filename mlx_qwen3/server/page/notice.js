// A box that says what went wrong, and offers to try again.

import { element, icon } from "./dom.js";
import { count, errorText } from "./words.js";

/**
 * error: {kind, detail, retryAt}; retryAt (milliseconds): when to try again without being asked.
 * retry(automatic): try again.
 */
export function notice(error, retry) {
  const button = element("button", { type: "button", onclick: () => retry(false) }, "Try again");
  const text = element("p", { dir: "auto" }, errorText(error));
  const box = element("div", { class: "notice", role: "alert" }, icon("warning"), text, button);
  if (error.retryAt > Date.now()) countDown(box, error.retryAt, retry);
  return box;
}

function countDown(box, until, retry) {
  const left = element("span", { class: "left", "aria-hidden": "true" });
  box.querySelector("p").append(" ", left);
  const tick = () => {
    const seconds = Math.ceil((until - Date.now()) / 1000);
    left.textContent = `Trying again in ${count(Math.max(seconds, 0), "second")}.`;
    if (seconds > 0) return;
    clearInterval(timer);
    if (box.isConnected) retry(true);
  };
  const timer = setInterval(tick, 250);
  tick();
}
