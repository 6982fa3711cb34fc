// The list of conversations, and where it goes on a narrow screen.

import { titleOf } from "./conversation.js";
import { element, iconButton } from "./dom.js";

const NARROW = window.matchMedia("(max-width: 48rem)");

export class Sidebar {
  /** elements: panel, list, toggle, close, scrim. actions: remove(conversation), toggled(open). */
  constructor(elements, actions, open) {
    Object.assign(this, elements);
    this.actions = actions;
    this.toggle.addEventListener("click", () => this.#choose(true));
    this.close.addEventListener("click", () => (this.#choose(false), this.toggle.focus()));
    this.scrim.addEventListener("click", () => this.#show(false));
    NARROW.addEventListener("change", () => this.#show(!NARROW.matches));
    this.#show(open && !NARROW.matches);
  }

  /** Returns whether there was a drawer to close. */
  closeDrawer() {
    if (!NARROW.matches || this.panel.hidden) return false;
    this.#show(false);
    return true;
  }

  /** running: ids of the conversations in which a reply is being made. */
  refresh(conversations, current, running) {
    const rows = conversations.map((one) => this.#row(one, one.id === current, running.has(one.id)));
    const none = element("li", { class: "none" }, "Chats are kept in this browser.");
    this.list.replaceChildren(...(rows.length > 0 ? rows : [none]));
  }

  #row(conversation, current, running) {
    const title = titleOf(conversation);
    const link = element(
      "a",
      { href: `#${conversation.id}`, title, "aria-current": current && "page", onclick: () => this.closeDrawer() },
      element("span", { dir: "auto" }, title),
      running && element("span", { class: "running", role: "img", "aria-label": "answering" }),
    );
    const remove = iconButton("trash", `Delete chat: ${title}`, () => this.actions.remove(conversation));
    return element("li", {}, link, remove);
  }

  /** What is chosen on a wide screen is remembered; a drawer is closed by nature. */
  #choose(open) {
    this.#show(open);
    if (!NARROW.matches) this.actions.toggled(open);
    if (open) this.close.focus();
  }

  #show(open) {
    this.panel.hidden = !open;
    this.scrim.hidden = !open || !NARROW.matches;
    this.toggle.hidden = open && !NARROW.matches;
    this.toggle.setAttribute("aria-expanded", open);
  }
}
