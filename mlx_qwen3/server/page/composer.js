// Where the user writes.

import { submits } from "./keys.js";

export class Composer {
  /** elements: form, field, send, stop, think. actions: send(text), stop(), think(on), editLast(). */
  constructor(elements, actions) {
    Object.assign(this, elements);
    this.actions = actions;
    this.form.addEventListener("submit", (event) => this.#submit(event));
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("input", () => this.#fit());
    this.stop.addEventListener("click", () => this.actions.stop());
    this.think.addEventListener("click", () => {
      this.actions.think(this.think.getAttribute("aria-pressed") !== "true");
    });
    this.#fit();
  }

  /** busy: a reply is being made, which can be stopped; nothing is sent meanwhile. */
  refresh({ busy, thinking, thinkingBudget, mode }) {
    const held = document.activeElement === this.stop || document.activeElement === this.send;
    this.busy = busy;
    this.stop.hidden = !busy;
    this.send.hidden = busy;
    if (held) this.focus(); // the button under the keyboard went away
    this.think.hidden = mode === "never";
    this.think.disabled = mode === "always";
    const on = mode === "always" || thinking;
    this.think.setAttribute("aria-pressed", on);
    const limit = on && thinkingBudget !== null ? ` ≤ ${thinkingBudget}` : "";
    this.think.querySelector("span").textContent = `Think${limit}`;
  }

  focus() {
    this.field.focus();
  }

  #submit(event) {
    event.preventDefault();
    const text = this.field.value;
    if (this.busy || !text.trim()) return;
    this.field.value = "";
    this.#fit();
    this.actions.send(text);
  }

  #key(event) {
    if (submits(event)) {
      event.preventDefault();
      this.form.requestSubmit();
    } else if (event.key === "ArrowUp" && this.field.value === "" && !this.busy) {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  /** As high as its text; style.css says how high at most. */
  #fit() {
    this.send.disabled = this.field.value.trim() === "";
    if (CSS.supports("field-sizing", "content")) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}
