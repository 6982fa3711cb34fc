// How replies are made: a form whose fields are settings (store.js), saved as they change.

import { readTools } from "./conversation.js";

// By the field's name: its text -> the setting. Nothing in a number's field: not sent at all.
const number = (text) => (text === "" ? null : Number(text));
const READERS = {
  system: String,
  temperature: number,
  maxTokens: number,
  thinkingBudget: number,
  tools: (text) => (readTools(text), text),
};

export class SettingsDialog {
  /** changed(): a setting is another. */
  constructor(dialog, settings, changed) {
    Object.assign(this, { dialog, settings, changed });
    this.form = dialog.querySelector("form");
    this.form.addEventListener("input", ({ target }) => this.#read(target));
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  }

  open() {
    for (const name of Object.keys(READERS)) {
      this.form.elements[name].value = this.settings[name] ?? "";
    }
    this.dialog.showModal();
  }

  /** A value that is out of range or no JSON is marked, and the old one stays. */
  #read(field) {
    field.setCustomValidity("");
    try {
      const value = READERS[field.name](field.value);
      if (field.checkValidity()) this.#keep(field.name, value);
    } catch (error) {
      field.setCustomValidity(error.detail);
    }
    this.form.querySelector(`[data-error="${field.name}"]`)?.replaceChildren(field.validationMessage);
  }

  #keep(name, value) {
    this.settings[name] = value;
    this.changed();
  }
}
