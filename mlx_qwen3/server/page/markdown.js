// Markdown that still grows, on the page: only its last two blocks are looked at again.

import { parse } from "./blocks.js";
import { element, icon, patch } from "./dom.js";
import { inline } from "./inline.js";

/** A container whose content follows a text that grows at its end. */
export class Markdown {
  #settled = 0; // characters of the text that are in final nodes
  #count = 0; // those nodes

  constructor(node = element("div", { class: "prose" })) {
    this.node = node;
  }

  /** Show the text: what was shown before, and more. */
  update(text) {
    const lines = text.slice(this.#settled).split("\n");
    const blocks = parse(lines);
    this.#show(blocks);
    // A line not yet complete can join the last block to the one before it; none before that.
    const open = blocks[Math.max(0, blocks.length - 2)];
    for (const line of lines.slice(0, open?.start ?? 0)) this.#settled += line.length + 1;
    this.#count += Math.max(0, blocks.length - 2);
  }

  #show(blocks) {
    const shown = [...this.node.childNodes].slice(this.#count);
    blocks.forEach((block, place) => {
      const fresh = render(block, true);
      if (shown[place]) patch(shown[place], fresh);
      else this.node.append(fresh);
    });
    shown.slice(blocks.length).forEach((node) => node.remove());
  }
}

// The outermost blocks find out by themselves in which direction they are written.
function render(block, outermost = false) {
  const node = RENDERERS[block.kind](block);
  if (outermost && !node.hasAttribute("dir")) node.setAttribute("dir", "auto");
  return node;
}

const RENDERERS = {
  // The page itself has the first two levels.
  heading: ({ level, text }) =>
    element(`h${Math.min(level + 2, 6)}`, { class: `level-${level}` }, inline(text)),
  paragraph: ({ text }) => element("p", {}, inline(text)),
  rule: () => element("hr"),
  math: ({ text }) => element("div", { class: "math", dir: "ltr" }, text),
  quote: ({ blocks }) => element("blockquote", {}, blocks.map((block) => render(block))),
  code: renderCode,
  list: renderList,
  table: renderTable,
};

// Copying is left to a listener around all messages: nodes here are replaced while they grow.
function renderCode({ language, text }) {
  const button = element(
    "button",
    { type: "button", class: "quiet", "data-copy": "code", "aria-label": "Copy code", title: "Copy code" },
    icon("copy"),
  );
  const head = element("div", { class: "code-head" }, element("span", {}, language), button);
  const body = element("pre", { tabindex: "0" }, element("code", {}, text));
  return element("div", { class: "code", dir: "ltr" }, head, body);
}

function renderList({ ordered, first, loose, items }) {
  const start = ordered && first !== 1 ? { start: String(first) } : {};
  const rows = items.map((item) => renderItem(item, loose));
  return element(ordered ? "ol" : "ul", start, rows);
}

function renderItem({ done, blocks }, loose) {
  const content = blocks.flatMap((block) =>
    !loose && block.kind === "paragraph" ? inline(block.text) : [render(block)],
  );
  if (done === null) return element("li", {}, content);
  const name = done ? "done" : "to do";
  const box = element("input", { type: "checkbox", disabled: true, checked: done, "aria-label": name });
  return element("li", { class: "task" }, box, " ", content);
}

function renderTable({ aligns, head, rows }) {
  const cells = (tag, texts) =>
    texts.map((text, column) => {
      const align = aligns[column] && `align-${aligns[column]}`;
      return element(tag, { class: align, scope: tag === "th" && "col" }, inline(text));
    });
  const top = element("thead", {}, element("tr", {}, cells("th", head)));
  const body = element("tbody", {}, rows.map((row) => element("tr", {}, cells("td", row))));
  return element("div", { class: "table", tabindex: "0" }, element("table", {}, top, body));
}
