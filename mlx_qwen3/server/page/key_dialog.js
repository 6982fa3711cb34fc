// Asks for the API key when the server wants one. It is kept for this tab only.

import { loadKey, saveKey } from "./store.js";

export class KeyDialog {
  /** given(): there is a key to try. */
  constructor(dialog, given) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    dialog.querySelector("[data-cancel]").addEventListener("click", () => dialog.close());
    this.form.addEventListener("submit", () => {
      const key = this.form.elements.key.value.trim();
      this.form.reset();
      if (!key) return;
      saveKey(key);
      given();
    });
  }

  ask() {
    if (this.dialog.open) return;
    this.dialog.querySelector("[data-refused]").hidden = !loadKey();
    this.dialog.showModal();
  }
}
