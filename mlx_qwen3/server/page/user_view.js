// What the user said: a bubble, and the field that edits it.

import { confirmed, copy, element, iconButton } from "./dom.js";
import { submits } from "./keys.js";

export class UserView {
  #text = element("div", { class: "bubble", dir: "auto" });
  #actions = element("footer", { class: "actions" });

  /** actions.edit(text): say this instead. */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    const name = { class: "message user", "aria-label": "You" };
    this.node = element("article", name, this.#text, this.#actions);
    this.#text.textContent = message.content;
  }

  refresh({ editable }) {
    if (this.#actions.dataset.editable === String(editable)) return;
    this.#actions.dataset.editable = editable;
    const copyButton = iconButton("copy", "Copy message", () => {
      copy(this.message.content).then(() => confirmed(copyButton));
    });
    const editButton = iconButton("edit", "Edit message", () => this.edit());
    this.#actions.replaceChildren(...(editable ? [editButton] : []), copyButton);
  }

  edit() {
    const { content } = this.message;
    const rows = Math.min(content.split("\n").length, 12); // where field-sizing is unknown
    const field = element("textarea", { "aria-label": "Edit message", dir: "auto", rows });
    field.value = content;
    const form = element("form", { class: "edit" }, field, editButtons(() => this.#close(form)));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) this.actions.edit(field.value);
    });
    form.addEventListener("keydown", (event) => {
      if (event.target === field && submits(event)) (event.preventDefault(), form.requestSubmit());
      if (event.key === "Escape" && !event.isComposing) (event.stopPropagation(), this.#close(form));
    });
    this.#text.replaceWith(form);
    this.#actions.hidden = true;
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  #close(form) {
    form.replaceWith(this.#text);
    this.#actions.hidden = false;
    this.#actions.querySelector("button").focus();
  }
}

function editButtons(cancel) {
  const buttons = [
    element("button", { type: "button", class: "plain", onclick: cancel }, "Cancel"),
    element("button", { type: "submit", class: "primary" }, "Send"),
  ];
  return element("div", { class: "buttons" }, ...buttons);
}
