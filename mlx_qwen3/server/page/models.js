// The models the server has, and the one chosen.

import { ApiError } from "./api.js";
import { element } from "./dom.js";
import { notice } from "./notice.js";

const AGAIN = 5000; // milliseconds between looks for a server that does not answer

export class Models {
  #models = [];
  #timer = null;
  #said = null;

  /** elements: model (a select), trouble (where errors go). actions: changed(), refused(). */
  constructor(elements, api, settings, actions) {
    Object.assign(this, elements, { api, settings, actions });
    this.model.addEventListener("change", () => {
      settings.model = this.model.value;
      actions.changed();
    });
  }

  /** The chosen model, the first one where that is gone, or undefined: none is known yet. */
  get current() {
    return this.#models.find(({ id }) => id === this.settings.model) ?? this.#models[0];
  }

  /** Ask the server; what goes wrong is said on the page. */
  async load() {
    clearTimeout(this.#timer);
    try {
      await this.#fetch();
      this.#quiet();
    } catch (error) {
      this.#say(error);
    }
  }

  /** The chosen model, asked for if need be. Raises ApiError. */
  async need() {
    if (!this.current) await this.#fetch();
    if (!this.current) throw new ApiError("empty");
    this.#quiet();
    return this.current;
  }

  async #fetch() {
    this.#models = await this.api.models();
    const options = this.#models.map(({ id }) => element("option", { value: id }, id));
    this.model.replaceChildren(...options);
    this.model.disabled = options.length === 0;
    if (this.current) this.model.value = this.current.id;
    this.actions.changed();
  }

  #quiet() {
    this.#said = null;
    this.trouble.replaceChildren();
  }

  #say(error) {
    if (error.kind === "key") return this.actions.refused();
    if (this.#said !== error.message) {
      this.#said = error.message; // once: it is read out, and may hold the keyboard
      this.trouble.replaceChildren(notice(error, () => this.load()));
    }
    this.#timer = setTimeout(() => this.load(), AGAIN);
    return undefined;
  }
}
