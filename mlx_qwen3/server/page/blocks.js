// Markdown's block structure: lines -> a tree of plain objects. Knows nothing of the DOM.
//
// The common part of CommonMark and GitHub's tables, with what language models write in mind:
// nested lists by two spaces or more, newlines kept, formulas left as they are, and HTML not
// markup but text. Every reader below is linear in its input.
//
// parse(lines) -> [{kind, start, ...}], start: the block's first line. By kind:
//   heading {level, text}   paragraph {text}   rule   code {language, text}   math {text}
//   quote {blocks}          list {ordered, first, loose, items: [{done, blocks}]}
//   table {aligns, head, rows}

const DEEPEST = 12; // of quotes and lists in each other; what is deeper stays text

export function parse(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = readBlock(lines, at, depth);
    blocks.push({ ...block, start: at });
    at = next;
  }
  return blocks;
}

// Each reader returns [block, the line after it], or null where another one is to read.
const READERS = [readFence, readMath, readHeading, readRule, readQuote, readList, readTable];

function readBlock(lines, at, depth) {
  for (const read of READERS) {
    const found = read(lines, at, depth);
    if (found) return found;
  }
  return readParagraph(lines, at, depth);
}

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;

function readFence(lines, at) {
  const opened = FENCE.exec(lines[at]);
  if (!opened) return null;
  const [, fence, info] = opened;
  const indent = indentOf(lines[at]);
  const text = [];
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const closed = FENCE.exec(lines[next]);
    if (closed && closed[1].startsWith(fence) && isBlank(closed[2])) break;
    text.push(dedent(lines[next], indent));
  }
  const language = info.trim().split(/\s/, 1)[0];
  return [{ kind: "code", language, text: text.join("\n") }, next + 1];
}

const MATH = { "$$": "$$", "\\[": "\\]" };
const LONGEST_FORMULA = 100; // lines

function readMath(lines, at) {
  const first = lines[at].trim();
  const end = MATH[first.slice(0, 2)];
  if (!end) return null;
  const rest = first.slice(2);
  if (rest.includes(end)) {
    return rest.endsWith(end) ? [{ kind: "math", text: rest.slice(0, -2).trim() }, at + 1] : null;
  }
  const text = [rest];
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    if (isBlank(lines[next]) || next > at + LONGEST_FORMULA) return null;
    const line = lines[next].trimEnd();
    text.push(line.endsWith(end) ? line.slice(0, -2) : line);
    if (line.endsWith(end)) break;
  }
  return [{ kind: "math", text: text.join("\n").trim() }, next + 1];
}

function readHeading(lines, at) {
  const opened = /^ {0,3}(#{1,6})(?=\s|$)/.exec(lines[at]);
  if (!opened) return null;
  let text = lines[at].slice(opened[0].length).trim();
  let end = text.length;
  while (text[end - 1] === "#") end -= 1;
  if (end === 0 || text[end - 1] === " ") text = text.slice(0, end).trim();
  return [{ kind: "heading", level: opened[1].length, text }, at + 1];
}

function readRule(lines, at) {
  const marks = lines[at].replaceAll(/\s/g, "");
  const rule = indentOf(lines[at]) < 4 && marks.length > 2 && /^(-+|\*+|_+)$/.test(marks);
  return rule ? [{ kind: "rule" }, at + 1] : null;
}

const QUOTE = /^ {0,3}> ?/;

function readQuote(lines, at, depth) {
  if (depth >= DEEPEST || !QUOTE.test(lines[at])) return null;
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    if (QUOTE.test(lines[next])) inner.push(lines[next].replace(QUOTE, ""));
    else if (isBlank(lines[next]) || startsBlock(lines, next, depth)) break;
    else inner.push(lines[next]);
  }
  return [{ kind: "quote", blocks: parse(inner, depth + 1) }, next];
}

const MARKER = /^( *)([-*+]|\d{1,9}[.)])(?: (.*))?$/;

/** A list item's first line: its indent, where its content begins, and what follows. */
function readMarker(line) {
  const found = MARKER.exec(expandTabs(line));
  if (!found) return null;
  const [, indent, mark, rest = ""] = found;
  const ordered = /\d/.test(mark);
  const offset = indent.length + mark.length + 1;
  return { indent: indent.length, offset, ordered, first: parseInt(mark, 10), rest };
}

function readList(lines, at, depth) {
  const opening = readMarker(lines[at]);
  if (depth >= DEEPEST || !opening || opening.indent > 3) return null;
  const { ordered, first, indent } = opening;
  const list = { kind: "list", ordered, first, loose: false, items: [] };
  let next = at;
  while (next < lines.length) {
    const marker = readMarker(lines[next]);
    if (!marker || marker.ordered !== ordered || marker.indent > indent + 1) break;
    if (list.items.length > 0 && readRule(lines, next)) break;
    const item = readItem(lines, next, marker, indent, depth);
    list.items.push(item);
    list.loose ||= item.loose;
    next = item.next;
    if (item.ends) break;
  }
  return [list, next];
}

/** One item, up to the next one or the list's end. */
function readItem(lines, at, marker, indent, depth) {
  const inner = [marker.rest];
  let [next, loose, ends] = [at + 1, false, false];
  while (next < lines.length) {
    const filled = skipBlank(lines, next);
    const inside = filled < lines.length && indentOf(lines[filled]) >= indent + 2;
    if (filled > next && !inside) {
      // Blank lines: another item may follow, anything else ends the list.
      const other = filled < lines.length && readMarker(lines[filled]);
      ends = !other || other.ordered !== marker.ordered;
      loose ||= !ends;
      next = ends ? next : filled;
      break;
    }
    if (!inside && (readMarker(lines[next]) || startsBlock(lines, next, depth))) break;
    for (; next < filled; next += 1) inner.push("");
    inner.push(inside ? dedent(expandTabs(lines[next]), marker.offset) : lines[next]);
    next += 1;
  }
  return { ...readTask(parse(inner, depth + 1), inner), loose, ends, next };
}

function readTask(blocks, inner) {
  const task = /^\[([ xX])\] /.exec(inner[0]);
  if (!task || blocks[0]?.kind !== "paragraph") return { done: null, blocks };
  const [first, ...others] = blocks;
  return { done: task[1] !== " ", blocks: [{ ...first, text: first.text.slice(4) }, ...others] };
}

function readTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return null;
  const [head, marks] = [readCells(lines[at]), readCells(lines[at + 1])];
  if (head.length !== marks.length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|") && !isBlank(lines[next]); next += 1) {
    const cells = readCells(lines[next]);
    rows.push(head.map((_, column) => cells[column] ?? ""));
  }
  return [{ kind: "table", aligns: marks.map(alignment), head, rows }, next];
}

function alignment(mark) {
  const [left, right] = [mark.startsWith(":"), mark.endsWith(":")];
  return right ? (left ? "center" : "right") : null;
}

/** A table row's cells. A | in a code span or after a backslash is text. */
function readCells(line) {
  const cells = [""];
  let code = false;
  const text = line.trim();
  for (let place = text.startsWith("|") ? 1 : 0; place < text.length; place += 1) {
    const char = text[place];
    if (char === "`") code = !code && text.includes("`", place + 1);
    if (char === "\\" && text[place + 1] === "|") {
      cells[cells.length - 1] += "|";
      place += 1;
    } else if (char === "|" && !code) {
      cells.push("");
    } else {
      cells[cells.length - 1] += char;
    }
  }
  if (cells.length > 1 && isBlank(cells.at(-1))) cells.pop();
  return cells.map((cell) => cell.trim());
}

function readParagraph(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && !isBlank(lines[next]) && !interrupts(lines, next, depth)) next += 1;
  const text = lines.slice(at, next).map((line) => line.trimStart()).join("\n");
  return [{ kind: "paragraph", text: text.trimEnd() }, next];
}

/** A numbered line in the midst of a paragraph begins a list only at 1: years end lines too. */
function interrupts(lines, at, depth) {
  const marker = readMarker(lines[at]);
  if (marker && (isBlank(marker.rest) || (marker.ordered && marker.first !== 1))) return false;
  return startsBlock(lines, at, depth);
}

const OPENERS = [
  (lines, at) => FENCE.test(lines[at]),
  (lines, at) => lines[at].trim().slice(0, 2) in MATH && readMath(lines, at) !== null,
  readHeading,
  readRule,
  (lines, at, depth) => depth < DEEPEST && QUOTE.test(lines[at]),
  (lines, at, depth) => depth < DEEPEST && (readMarker(lines[at])?.indent ?? 9) < 4,
  (lines, at) => lines[at].includes("|") && readTable(lines.slice(at, at + 2), 0) !== null,
];

function startsBlock(lines, at, depth) {
  return OPENERS.some((opens) => opens(lines, at, depth));
}

function skipBlank(lines, at) {
  let next = at;
  while (next < lines.length && isBlank(lines[next])) next += 1;
  return next;
}

function isBlank(line) {
  return line.trim() === "";
}

function expandTabs(line) {
  return /^ *\t/.test(line) ? line.replace(/^[ \t]+/, (run) => run.replaceAll("\t", "    ")) : line;
}

function indentOf(line) {
  return /^ */.exec(expandTabs(line))[0].length;
}

/** Without its first `width` columns, as far as they are blank. */
function dedent(line, width) {
  return line.slice(Math.min(width, /^ */.exec(line)[0].length));
}
