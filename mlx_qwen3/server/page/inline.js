// Markdown within a line: text -> DOM nodes. HTML is text; images are links; the only addresses
// that become links are http and https.
//
// One pass with a stack of open emphasis. Whatever a model writes, the work is linear in it.

import { element } from "./dom.js";

const SPECIAL = /[\\`*_~[!<$\n]|https?:\/\//g;
const DEEPEST = 16; // emphasis in emphasis

/** The nodes of a text. links: whether links may be made (there are none within a link). */
export function inline(text, { links = true } = {}) {
  const scan = new Scan(text, links);
  while (scan.at < text.length) {
    SPECIAL.lastIndex = scan.at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    scan.say(text.slice(scan.at, next));
    scan.at = next;
    if (next < text.length) step(scan, text[next]);
  }
  return scan.finish();
}

function step(scan, char) {
  const length = READERS[char](scan) || 0;
  if (length === 0) scan.say(char);
  scan.at += length || 1;
}

// By first character. Each adds nodes and returns the characters it read; 0: it is plain text.
const READERS = {
  "\\": readEscape,
  "`": readCode,
  "*": readDelimiters,
  "_": readDelimiters,
  "~": readDelimiters,
  "!": (scan) => readLink(scan, 1),
  "[": (scan) => readLink(scan, 0),
  "<": readAngle,
  $: readDollar,
  "\n": readNewline,
  h: readAddress,
};

function readEscape(scan) {
  const formula = scan.match(/\\\(([^]{1,1000}?)\\\)|\\\[([^]{1,1000}?)\\\]/y);
  if (formula) return scan.add(math(formula[1] ?? formula[2]), formula[0]);
  const next = scan.text[scan.at + 1];
  if (next === "\n") return scan.add(element("br"), "\\\n");
  return next && /[!-/:-@[-`{-~]/.test(next) ? scan.add(next, `\\${next}`) : 0;
}

function readCode(scan) {
  const [ticks] = scan.match(/`+/y);
  const end = scan.find(ticks);
  if (end < 0) return scan.add(ticks, ticks);
  const whole = scan.text.slice(scan.at, end + ticks.length);
  let code = whole.slice(ticks.length, -ticks.length).replaceAll("\n", " ");
  if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
  return scan.add(element("code", {}, code), whole);
}

const UNITS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };

function readDelimiters(scan) {
  const char = scan.text[scan.at];
  const [run] = scan.match(char === "*" ? /\*+/y : char === "_" ? /_+/y : /~+/y);
  const [before, after] = [scan.text[scan.at - 1] ?? " ", scan.text[scan.at + run.length] ?? " "];
  const word = char === "_" ? /[\p{L}\p{N}]/u : /\d/; // snake_case, 2*3*4
  const within = word.test(before) && word.test(after);
  let left = run.length;
  if (left > 3 || within) return scan.add(run, run);
  if (/\S/.test(before)) left -= closeEmphasis(scan, char, left);
  if (/\S/.test(after)) left -= openEmphasis(scan, char, left);
  scan.say(char.repeat(left));
  return run.length;
}

/** Close what is open, innermost first; returns how many characters that used. */
function closeEmphasis(scan, char, length) {
  let left = length;
  while (left > 0) {
    const wanted = left > 2 ? [char, char + char] : [char.repeat(left)];
    const unit = scan.close(wanted);
    if (!unit) break;
    left -= unit.length;
  }
  return length - left;
}

function openEmphasis(scan, char, length) {
  const units = { 1: [char], 2: [char + char], 3: [char + char, char] }[length] ?? [];
  const known = units.filter((unit) => unit in UNITS && scan.open(unit));
  return known.join("").length;
}

const LINK =
  /!?\[((?:\\.|[^[\]\\]|\[[^[\]]*\])*)\]\([ \n]?<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:\s"[^"\n]*"|\s'[^'\n]*')?\s?\)/y;

function readLink(scan, bang) {
  if (bang && scan.text[scan.at + 1] !== "[") return 0;
  const found = scan.match(LINK);
  if (!found) return 0;
  const [whole, label, address] = found;
  const content = label ? inline(label, { links: false }) : [address];
  const href = scan.links && safeAddress(address);
  // An address that is not to be opened is shown, so that nothing is hidden behind a label.
  if (!href) return scan.addAll([...content, ` (${address})`], whole);
  return scan.add(link(href, content), whole);
}

function readAngle(scan) {
  const lineBreak = scan.match(/<br ?\/?>/iy);
  if (lineBreak) return scan.add(element("br"), lineBreak[0]);
  const found = scan.match(/<(https?:\/\/[^\s<>]+)>/y);
  const href = found && scan.links && safeAddress(found[1]);
  return href ? scan.add(link(href, [found[1]]), found[0]) : 0;
}

function readDollar(scan) {
  // Not "$5 and $6": nothing blank inside the signs, no digit after them.
  const found = scan.match(/\$\$([^$]{1,1000})\$\$|\$(?=\S)([^$\n]{1,200})(?<=\S)\$(?!\d)/y);
  return found ? scan.add(math(found[1] ?? found[2]), found[0]) : 0;
}

function readNewline(scan) {
  return scan.add(element("br"), "\n");
}

function readAddress(scan) {
  const before = scan.text[scan.at - 1] ?? " ";
  const found = scan.match(/https?:\/\/[^\s<>"`\u3000-\u303f\uff00-\uffef]+/y);
  if (!scan.links || !found || /[a-zA-Z0-9]/.test(before)) return 0;
  const address = withoutPunctuation(found[0]);
  const href = safeAddress(address);
  return href ? scan.add(link(href, [address]), address) : 0;
}

/** What ends a sentence, or closes a bracket opened before the address, is not part of it. */
function withoutPunctuation(address) {
  let end = address.length;
  let open = address.split("(").length - address.split(")").length;
  while (/[.,;:!?'*_~\])]/.test(address[end - 1])) {
    if (address[end - 1] === ")" && open >= 0) break;
    if (address[end - 1] === ")") open += 1;
    end -= 1;
  }
  return address.slice(0, end);
}

/** The address if it is http or https, else null. */
export function safeAddress(address) {
  if (!/^https?:\/\//i.test(address)) return null;
  try {
    return new URL(address).href;
  } catch {
    return null;
  }
}

function link(href, content) {
  const attributes = { href, title: href, target: "_blank", rel: "noopener noreferrer" };
  return element("a", attributes, content);
}

function math(text) {
  return element("span", { class: "math", dir: "ltr" }, text.trim());
}

/** A place in a text, and the nodes made so far: a frame for each emphasis still open. */
class Scan {
  at = 0;
  #frames = [{ unit: "", nodes: [] }];
  #open = {}; // unit -> how many frames; tells at once that there is nothing to close
  #missing = new Set(); // delimiters that do not occur again

  constructor(text, links) {
    this.text = text;
    this.links = links;
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  /** Where exactly this run of backticks occurs again, or -1. */
  find(ticks) {
    if (this.#missing.has(ticks)) return -1;
    const runs = /`+/g;
    runs.lastIndex = this.at + ticks.length;
    for (let run = runs.exec(this.text); run; run = runs.exec(this.text)) {
      if (run[0] === ticks) return run.index;
    }
    this.#missing.add(ticks);
    return -1;
  }

  say(text) {
    if (text) this.#frames.at(-1).nodes.push(text);
  }

  add(node, source) {
    return this.addAll([node], source);
  }

  addAll(nodes, source) {
    for (const node of nodes) this.#frames.at(-1).nodes.push(node);
    return source.length;
  }

  open(unit) {
    if (this.#frames.length > DEEPEST) return false;
    this.#frames.push({ unit, nodes: [] });
    this.#open[unit] = (this.#open[unit] ?? 0) + 1;
    return true;
  }

  /** Close the innermost of these; returns it. What was opened within it was no emphasis. */
  close(units) {
    if (!units.some((unit) => this.#open[unit])) return null;
    const depth = this.#frames.findLastIndex((frame) => units.includes(frame.unit));
    const frame = this.#frames[depth];
    this.#flatten(depth);
    if (frame.nodes.length === 0) return null;
    this.#frames.pop();
    this.#open[frame.unit] -= 1;
    this.say(element(UNITS[frame.unit], {}, frame.nodes));
    return frame.unit;
  }

  finish() {
    this.#flatten(0);
    return merged(this.#frames[0].nodes);
  }

  #flatten(depth) {
    const base = this.#frames[depth].nodes;
    for (const frame of this.#frames.splice(depth + 1)) {
      this.#open[frame.unit] -= 1;
      base.push(frame.unit);
      for (const node of frame.nodes) base.push(node);
    }
  }
}

/** Neighbouring pieces of text as one: fewer nodes, and the same ones however they came. */
function merged(nodes) {
  const result = [];
  for (const node of nodes) {
    const joins = typeof node === "string" && typeof result.at(-1) === "string";
    if (joins) result[result.length - 1] += node;
    else if (node !== "") result.push(node);
  }
  return result;
}
