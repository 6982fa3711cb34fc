"""Markdown to lines, as it streams: what can no longer change is let go, the rest redrawn.

The colours are the terminal's own sixteen, which suit its background, light or dark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from rich.cells import cell_len
from rich.text import Text

from mlx_qwen3.cli.code import highlighted
from mlx_qwen3.cli.terminal import CONTROLS
from mlx_qwen3.cli.wrap import prefixed, wrap

if TYPE_CHECKING:
    from markdown_it.rules_inline import StateInline

Lines = list[Text]

PROSE = 100  # cells; wider lines are hard to read
_LEAST_COLUMN = 3  # cells of a table's column
_HEADINGS = {"h1": "bold underline", "h2": "bold", "h3": "bold italic"}
_INLINE = {"strong": "bold", "em": "italic", "s": "strike"}
_LEAVES = {"code_inline": "cyan", "math": "italic"}
_MATH = re.compile(
    r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)", re.DOTALL
)


class MarkdownStream:
    """Takes markdown as it comes; gives the lines that are final, and those that are not yet.

    A block (paragraph, list, table) is final when the next one has begun; of a block of code,
    every line but the last is.
    """

    def __init__(self) -> None:
        self._parser = _make_parser()
        self._text = ""  # of the last block, and nothing before it
        self._released = 0  # lines of that block that are out already
        self._first = True

    def feed(self, text: str) -> None:
        """Take more text."""
        self._text += text.translate(CONTROLS).replace("\t", "    ")

    def take(self, width: int) -> tuple[Lines, Lines]:
        """(lines that are final and were not given before, lines that may still change)."""
        done = self._finished_blocks(width)
        last = self._render(_completed(self._text), width)
        final = max(len(last) - 1, 0) if self._is_open_code() else 0
        done += last[self._released : final]
        self._released = max(self._released, final)
        return done, last[self._released :]

    def finish(self, width: int) -> Lines:
        """The rest: no more text will come."""
        rest = self._render(self._text, width)[self._released :]
        self._text, self._released = "", 0
        return rest

    def _finished_blocks(self, width: int) -> Lines:
        tokens = self._parser.parse(self._text)
        starts = [token.map[0] for token in tokens if token.map and token.level == 0]
        if not starts or starts[-1] == starts[0]:
            return []
        lines = self._text.splitlines(keepends=True)
        done = self._render("".join(lines[: starts[-1]]), width)[self._released :]
        self._text, self._released, self._first = "".join(lines[starts[-1] :]), 0, False
        return done

    def _render(self, text: str, width: int) -> Lines:
        lines = _blocks(SyntaxTreeNode(self._parser.parse(text)).children, width, gap=True)
        return lines if self._first or not lines else [Text(), *lines]

    def _is_open_code(self) -> bool:
        tokens = self._parser.parse(self._text)
        begun = "\n" in self._text.strip("\n")  # and its language is known to the end
        return begun and bool(tokens) and tokens[-1].type == "fence"


def _make_parser() -> MarkdownIt:
    """CommonMark with tables. What hides text of a model's is left out: HTML, link definitions.

    So are underlined headings, which the beginnings of lists and rules look like.
    """
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline", "reference", "lheading"])
    parser.inline.ruler.before("escape", "math", _math)
    return parser


def _math(state: StateInline, silent: bool) -> bool:
    """TeX between its signs stays as it is, underscores and backslashes included."""
    if state.src[state.pos] not in "$\\":
        return False
    found = _MATH.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.push("math", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _completed(text: str) -> str:
    """Text with the code and bold it has open closed, as they are bound to be."""
    last = text.rpartition("\n\n")[2]
    if "```" in last:
        return text
    if last.count("`") % 2:
        return text[:-1] if text.endswith("`") else text + "`"
    if re.sub(r"`[^`]*`", "", last).count("**") % 2:
        bare = text.rstrip("* \n")
        return bare if text.endswith("**") and bare == text[:-2].rstrip() else bare + "**"
    return text


# --- blocks


def _blocks(nodes: Sequence[SyntaxTreeNode], width: int, *, gap: bool) -> Lines:
    lines: Lines = []
    for node in nodes:
        lines += [Text()] if gap and lines else []
        lines += _BLOCKS.get(node.type, _paragraph)(node, width)
    return lines


def _paragraph(node: SyntaxTreeNode, width: int) -> Lines:
    return wrap(_inline(node.children), min(width, PROSE))


def _heading(node: SyntaxTreeNode, width: int) -> Lines:
    text = _inline(node.children, _HEADINGS.get(node.tag, "italic"))
    return wrap(text, min(width, PROSE))


def _code(node: SyntaxTreeNode, width: int) -> Lines:
    language = node.info.split()[0] if node.info.split() else ""
    lines = wrap(highlighted(node.content.removesuffix("\n"), language), width - 2)
    label = [Text(language, "dim")] if language else []
    return prefixed([*label, *lines], Text("  "), Text("  "))


def _quote(node: SyntaxTreeNode, width: int) -> Lines:
    bar = Text("▌ ", "dim")
    return prefixed(_blocks(node.children, width - 2, gap=True), bar, bar)


def _rule(node: SyntaxTreeNode, width: int) -> Lines:
    return [Text("─" * min(width, 40), "dim")]


def _list(node: SyntaxTreeNode, width: int) -> Lines:
    loose = any(not child.hidden for item in node.children for child in _paragraphs(item))
    marks = _marks(node)
    size = max(map(len, marks), default=0)
    lines: Lines = []
    for mark, item in zip(marks, node.children, strict=True):
        lines += [Text()] if loose and lines else []
        body = _blocks(item.children, width - size, gap=loose) or [Text()]
        lines += prefixed(body, Text(mark.rjust(size), "cyan"), Text(" " * size))
    return lines


def _paragraphs(item: SyntaxTreeNode) -> list[SyntaxTreeNode]:
    return [child for child in item.children if child.type == "paragraph"]


def _marks(node: SyntaxTreeNode) -> list[str]:
    if node.type == "bullet_list":
        return [" • "] * len(node.children)
    start = int(node.attrs.get("start", 1))
    return [f" {number}. " for number in range(start, start + len(node.children))]


def _table(node: SyntaxTreeNode, width: int) -> Lines:
    rows = [
        [(_inline(cell.children), _alignment(cell)) for cell in row.children]
        for part in node.children
        for row in part.children
    ]
    for text, _ in rows[0]:
        text.stylize("bold")
    natural = [max(map(_natural, column)) for column in zip(*rows, strict=True)]
    sizes = _fitted(natural, width - 3 * (len(natural) - 1))
    rule = Text("─┼─".join("─" * size for size in sizes), "dim")
    head, *body = [_row(row, sizes) for row in rows]
    return [*head, rule, *(line for row in body for line in row)]


def _natural(cell: tuple[Text, str]) -> int:
    return max(map(cell_len, cell[0].plain.split("\n")))


def _fitted(sizes: list[int], width: int) -> list[int]:
    """Column widths of at most `width` in all: the widest give way."""
    sizes = [max(size, 1) for size in sizes]
    while sum(sizes) > width and max(sizes) > _LEAST_COLUMN:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


def _row(cells: list[tuple[Text, str]], sizes: list[int]) -> Lines:
    columns = [wrap(text, size) for (text, _), size in zip(cells, sizes, strict=True)]
    bar = Text(" │ ", "dim")
    lines: Lines = []
    for number in range(max(map(len, columns))):
        parts = [
            _aligned(column[number] if number < len(column) else Text(), size, how)
            for column, size, (_, how) in zip(columns, sizes, cells, strict=True)
        ]
        line = Text.assemble(parts[0], *(piece for part in parts[1:] for piece in (bar, part)))
        line.rstrip()
        lines.append(line)
    return lines


def _aligned(text: Text, size: int, how: str) -> Text:
    room = max(size - cell_len(text.plain), 0)
    left = {"right": room, "center": room // 2}.get(how, 0)
    return Text.assemble(" " * left, text, " " * (room - left))


def _alignment(cell: SyntaxTreeNode) -> str:
    return str(cell.attrs.get("style", "")).removeprefix("text-align:")


_BLOCKS: dict[str, Callable[[SyntaxTreeNode, int], Lines]] = {
    "paragraph": _paragraph,
    "heading": _heading,
    "fence": _code,
    "code_block": _code,
    "blockquote": _quote,
    "hr": _rule,
    "bullet_list": _list,
    "ordered_list": _list,
    "table": _table,
}


# --- within a block


def _inline(nodes: Sequence[SyntaxTreeNode], style: str = "") -> Text:
    text = Text()
    for node in nodes:
        text.append_text(_span(node, style))
    return text


def _span(node: SyntaxTreeNode, style: str) -> Text:
    if node.type in ("softbreak", "hardbreak"):  # a model that breaks a line means it
        return Text("\n")
    if node.type in ("link", "image"):
        return _link(node, style)
    if node.children:
        return _inline(node.children, f"{style} {_INLINE.get(node.type, '')}".strip())
    return Text(node.content, f"{style} {_LEAVES.get(node.type, '')}".strip())


def _link(node: SyntaxTreeNode, style: str) -> Text:
    """The words, and where they lead: a link that hides its address is not to be trusted."""
    address = str(node.attrs.get("href") or node.attrs.get("src") or "")
    words = _inline(node.children, f"{style} underline".strip())
    if words.plain == address.removeprefix("mailto:"):
        return words
    return Text.assemble(words, (f" ({address})", "dim"))
