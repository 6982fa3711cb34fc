// What the model said: its thought, folded; its answer; its calls; how it ended; what it took.

import { CallsView } from "./calls_view.js";
import { confirmed, copy, element, icon, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";
import { notice } from "./notice.js";
import { ended, statistics, thinkingText } from "./words.js";

export class ReplyView {
  #thought = new Markdown();
  #answer = new Markdown();
  #summary = element("span");
  #thinking = element(
    "details",
    { class: "thinking", hidden: true },
    element("summary", {}, icon("thought"), this.#summary, icon("chevron")),
    this.#thought.node,
  );
  #waiting = element("div", { class: "waiting" }, element("span", { class: "sr-only" }, "Waiting for the model"));
  #ending = element("div");
  #actions = element("footer", { class: "actions" });
  #shownEnd = "";

  /** actions: regenerate(), retry(automatic), answer(results). */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.calls = new CallsView(actions);
    const parts = [this.#thinking, this.#waiting, this.#answer.node, this.calls.node, this.#ending];
    const name = { class: "message reply", "aria-label": "Model" };
    this.node = element("article", name, ...parts, this.#actions);
    this.#thinking.addEventListener("toggle", () => this.#showThought());
  }

  /** The nodes of the answer, for whoever reads it out. */
  get paragraphs() {
    return this.#answer.node.children;
  }

  /** last: whether it can be made anew. results: see CallsView. */
  refresh({ last, results }) {
    const { content, reasoning, calls, state } = this.message;
    const live = state === "streaming";
    this.node.setAttribute("aria-busy", live);
    this.#waiting.hidden = !live || Boolean(content || reasoning || calls.length > 0);
    this.#thinking.hidden = !reasoning;
    this.#thinking.classList.toggle("live", live && !content && calls.length === 0);
    this.#summary.textContent = thinkingText(this.message, this.#thinking.classList.contains("live"));
    this.#showThought();
    this.#answer.update(content);
    const asking = last && state === "done" && results.includes(null);
    this.calls.refresh(calls, results, asking);
    if (!live) this.#showEnd(last);
  }

  /** Thoughts are long; a folded one costs nothing. */
  #showThought() {
    if (this.#thinking.open) this.#thought.update(this.message.reasoning);
  }

  #showEnd(last) {
    const { state, error, finish } = this.message;
    const shown = JSON.stringify([state, last]);
    if (shown === this.#shownEnd) return;
    this.#shownEnd = shown;
    const why = state === "done" ? ended[finish] : ended[state];
    const box = error && last ? notice(error, (automatic) => this.actions.retry(automatic)) : null;
    this.#ending.replaceChildren(...[box ?? (why && element("p", { class: "ended" }, why))].filter(Boolean));
    this.#showActions(last && !box);
  }

  #showActions(repeatable) {
    const copyButton = iconButton("copy", "Copy reply", () => {
      copy(this.message.content).then(() => confirmed(copyButton));
    });
    const again = iconButton("again", "Regenerate reply", () => this.actions.regenerate());
    const numbers = statistics(this.message).map(([text, title]) => element("span", { title }, text));
    this.#actions.replaceChildren(
      ...(this.message.content ? [copyButton] : []),
      ...(repeatable ? [again] : []),
      element("div", { class: "statistics" }, ...numbers),
    );
  }
}
