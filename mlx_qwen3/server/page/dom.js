// Nodes, made from data. Text enters a page as text nodes only: nothing here, or in any module
// that uses it, parses HTML. The content security policy (trusted types) holds us to that.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes (a function: an event listener; false, null: left out) and children
 * (nodes, text, lists of them). Long lists go in as lists: as arguments they overflow the stack.
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  for (const child of children.flat()) if (child != null && child !== false) node.append(child);
  return node;
}

/** One of the symbols that index.html defines. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon, with a name for those who do not see it. */
export function iconButton(name, label, onclick, attributes = {}) {
  const named = { type: "button", class: "quiet", "aria-label": label, title: label };
  return element("button", { ...named, onclick, ...attributes }, icon(name));
}

/**
 * Make `old` look like `fresh`, touching only what differs: a selection, a scrolled code block or
 * a screen reader's place in a text that still grows stays where it is. Returns the node in place.
 */
export function patch(old, fresh) {
  if (!alike(old, fresh)) {
    old.replaceWith(fresh);
    return fresh;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return old;
  }
  const [before, after] = [[...old.childNodes], [...fresh.childNodes]];
  after.forEach((child, place) => (before[place] ? patch(before[place], child) : old.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
  return old;
}

function alike(one, other) {
  if (one.nodeType !== other.nodeType || one.nodeName !== other.nodeName) return false;
  if (one.nodeType !== Node.ELEMENT_NODE) return true;
  const names = one.getAttributeNames();
  return (
    names.length === other.getAttributeNames().length &&
    names.every((name) => one.getAttribute(name) === other.getAttribute(name))
  );
}

/** Copy a text, also where the page is not served from this machine (no clipboard API there). */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { class: "sr-only", "aria-hidden": "true" });
  const focused = document.activeElement;
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
  focused?.focus();
}

/** A button's icon turns into a tick for a moment. */
export function confirmed(button) {
  const use = button.querySelector("use");
  const before = use.getAttribute("href");
  if (before === "#icon-check") return;
  use.setAttribute("href", "#icon-check");
  setTimeout(() => use.setAttribute("href", before), 1500);
}
