"""Styled text to lines that fit a terminal, wide characters and all.

Imported only where a reply is shown on a terminal: rich is not needed for less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

from mlx_qwen3.cli.terminal import CONTROLS

# Chinese and Japanese may be broken between any two characters; Korean is written with spaces.
_WIDE = (
    "\u2e80-\u312f\u3190-\ua4cf\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6"
    "\U00020000-\U0003fffd"
)
_OPENS = "「『（【《〈〔“‘"
_CLOSES = "、。，．：；？！」』）】》〉〕”’…ー,.:;?!)\\]}"
# What stays together: a wide character with the punctuation that clings to it, or a word.
_CHUNK = re.compile(rf"[{_OPENS}]*[{_WIDE}][{_CLOSES}]*\s*|(?:(?![{_WIDE}])\S)+\s*|\s+")


def wrap(text: Text, width: int) -> list[Text]:
    """The lines of a text, none of them wider than `width` cells."""
    width = max(width, 2)  # a wide character must fit
    return [
        part
        for line in text.split("\n", allow_blank=True)
        for part in _divided(line, list(_breaks(line.plain, width)))
    ]


def clip(text: str, width: int) -> str:
    """One line of a text, cut at `width` cells."""
    line = text.replace("\n", " ")
    if cell_len(line) <= width:
        return line
    return _fitting(line, max(width - 1, 1)) + "…"


def prefixed(lines: Iterable[Text], first: Text, rest: Text) -> list[Text]:
    """Lines with `first` in front of the first and `rest` of the others."""
    return [Text.assemble(rest if number else first, line) for number, line in enumerate(lines)]


def ansi(lines: Sequence[Text], console: Console) -> list[str]:
    """Lines with their styles as escape sequences, and no others: not one that a model wrote."""
    return ["".join(_runs(line, console)) for line in lines]


def _runs(line: Text, console: Console) -> Iterator[str]:
    if not line.spans:  # rich then leaves the text's own style out
        line.stylize(line.style)
    for text, style, _ in line.render(console):
        clean = text.translate(CONTROLS)
        if style is None:
            yield clean
        else:
            shown = style.without_color if console.no_color else style
            yield shown.render(clean, color_system=ColorSystem.STANDARD)


def _divided(line: Text, offsets: list[int]) -> list[Text]:
    parts = list(line.divide(offsets)) if offsets else [line]
    for part in parts:
        part.rstrip()
    return parts


def _breaks(line: str, width: int) -> Iterator[int]:
    """Where a line is to be broken. Spaces at a break hang over the edge and are dropped."""
    used = 0
    for chunk in _CHUNK.finditer(line):
        start, word = chunk.start(), chunk[0].rstrip()
        if used and used + cell_len(word) > width:
            yield start
            used = 0
        while cell_len(word) > width:  # longer than a line: broken wherever it must be
            head = _fitting(word, width)
            start, word = start + len(head), word[len(head) :]
            yield start
        used += cell_len(line[start : chunk.end()])


def _fitting(text: str, width: int) -> str:
    """The beginning of a text that fills at most `width` cells."""
    used = 0
    for number, char in enumerate(text):
        used += cell_len(char)
        if used > width:
            return text[:number]
    return text
