// The messages of the conversation on show.

import { lastUser, resultOf } from "./conversation.js";
import { confirmed, copy, element } from "./dom.js";
import { ReplyView } from "./reply_view.js";
import { UserView } from "./user_view.js";

const NEAR_END = 48; // pixels: who is this near the end wants to stay there
const VIEWS = { user: UserView, assistant: ReplyView };

export class Transcript {
  #views = new Map(); // message -> view
  #following = true;
  #scheduled = false;
  #spoken = 0; // paragraphs of the newest reply already read out

  /** scroller around column; latest: a button to the end; live: a region that is read out. */
  constructor({ scroller, column, latest, live }, actions) {
    Object.assign(this, { scroller, column, latest, live, actions });
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    latest.addEventListener("click", () => this.follow());
    column.addEventListener("click", ({ target }) => copyCode(target.closest("[data-copy]")));
    new ResizeObserver(() => this.#keepUp()).observe(column);
  }

  /** Show this conversation, and from now on its changes. */
  show(conversation) {
    this.conversation = conversation;
    this.#views.clear();
    this.column.replaceChildren();
    this.live.replaceChildren();
    this.#spoken = Infinity;
    this.sync();
    this.follow();
  }

  /** Messages came or went. */
  sync() {
    const shown = this.conversation.messages.filter(({ role }) => role in VIEWS);
    for (const [message, view] of this.#views) {
      if (!shown.includes(message)) (view.node.remove(), this.#views.delete(message));
    }
    for (const message of shown) if (!this.#views.has(message)) this.#add(message);
    this.#refreshAll();
  }

  /** The newest message grew. Drawn once a frame, however many pieces arrive. */
  grow() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      this.#refresh(this.conversation.messages.at(-1));
    });
  }

  follow() {
    this.#following = true;
    this.#keepUp();
  }

  /** Open the last user message for editing. */
  editLast() {
    const view = this.#views.get(this.conversation.messages[lastUser(this.conversation)]);
    if (view?.node.querySelector("form") === null) view.edit();
  }

  #add(message) {
    const view = new VIEWS[message.role](message, this.actions);
    if (message.state === "streaming") this.#listen();
    this.#views.set(message, view);
    this.column.append(view.node);
  }

  #refreshAll() {
    for (const message of this.#views.keys()) this.#refresh(message);
  }

  #refresh(message) {
    const { messages } = this.conversation;
    const results = (message?.calls ?? []).map((call) => resultOf(this.conversation, message, call));
    const view = this.#views.get(message);
    const running = messages.at(-1)?.state === "streaming";
    const editable = !running && messages.indexOf(message) === lastUser(this.conversation);
    view?.refresh({ last: message === messages.at(-1), editable, results });
    if (view instanceof ReplyView && message === messages.at(-1)) this.#readOut(message, view);
  }

  /** A paragraph is read out when the next one has begun: no half words. */
  #readOut({ state }, { paragraphs }) {
    const whole = state === "streaming" ? paragraphs.length - 1 : paragraphs.length;
    for (; this.#spoken < whole; this.#spoken += 1) {
      this.live.append(element("p", {}, paragraphs[this.#spoken].textContent));
    }
  }

  #listen() {
    this.#spoken = 0;
    this.live.replaceChildren(element("p", {}, "The model is answering."));
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.latest.hidden = this.#following;
  }

  #keepUp() {
    if (this.#following) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#scrolled();
  }
}

function copyCode(button) {
  if (!button) return;
  const text = button.closest(".code").querySelector("pre").textContent;
  copy(text).then(() => confirmed(button));
}
