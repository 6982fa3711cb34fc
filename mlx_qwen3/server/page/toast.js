// A line that says what was done, for a while, and may undo it.

import { element } from "./dom.js";

const SHOWN = 8000; // milliseconds

export class Toast {
  #timer = null;

  constructor(node) {
    this.node = node;
  }

  show(text, label = null, action = null) {
    clearTimeout(this.#timer);
    const undo = () => (this.#hide(), action());
    const button = label && element("button", { type: "button", class: "plain", onclick: undo }, label);
    this.node.replaceChildren(element("span", {}, text), ...(button ? [button] : []));
    this.node.hidden = false;
    this.#timer = setTimeout(() => this.#hide(), SHOWN);
  }

  #hide() {
    this.node.hidden = true;
    this.node.replaceChildren();
  }
}
