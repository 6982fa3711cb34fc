// The tool calls of a reply. The page runs no tools: it shows what the model asks for, and hands
// back what the user answers.

import { element, icon } from "./dom.js";

export class CallsView {
  #shown = "";

  /** actions.answer({call id: result}): hand results to the model. */
  constructor(actions) {
    this.actions = actions;
    this.node = element("form", { class: "calls", hidden: true });
    this.node.addEventListener("submit", (event) => this.#submit(event));
  }

  /** results: one per call, null where there is none; asking: whether they can be given. */
  refresh(calls, results, asking) {
    const state = JSON.stringify([calls, results, asking]);
    if (state === this.#shown) return;
    this.#shown = state;
    this.calls = calls;
    this.node.hidden = calls.length === 0;
    const cards = calls.map((call, place) => card(call, results[place], asking));
    const send = element("button", { type: "submit", class: "primary" }, "Send result");
    this.node.replaceChildren(...cards, ...(asking ? [element("div", { class: "buttons" }, send)] : []));
  }

  #submit(event) {
    event.preventDefault();
    const fields = [...this.node.querySelectorAll("textarea")];
    this.actions.answer(this.calls.map(({ id }, place) => ({ id, content: fields[place].value })));
  }
}

function card({ name, arguments: text }, result, asking) {
  const title = element("h3", {}, icon("tool"), element("span", { class: "sr-only" }, "Tool call: "), name);
  const wanted = element("pre", { tabindex: "0" }, element("code", {}, indented(text)));
  const rest = result !== null ? [shownResult(result)] : asking ? [resultField(name)] : [];
  return element("section", { class: "call", dir: "ltr" }, title, wanted, ...rest);
}

function shownResult(result) {
  const head = element("div", { class: "call-label" }, "Result");
  return element("div", {}, head, element("pre", { tabindex: "0" }, element("code", {}, result)));
}

function resultField(name) {
  const label = `Result of ${name}`;
  return element("textarea", { rows: "1", placeholder: "What does it return?", "aria-label": label, dir: "auto" });
}

/** JSON with line breaks; as it is while it is not (yet) JSON. */
function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
