"""The last lines of a terminal, redrawn in place without flicker."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TextIO

# Drawn at once where the terminal can (2026), and without wrapping (7): a character that is wider
# than it was taken for then costs its line's end, and not the count of lines.
_BEGIN, _END = "\x1b[?2026h\x1b[?7l", "\x1b[?7h\x1b[?2026l"
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_RESET, _ERASE_LINE, _ERASE_BELOW = "\x1b[0m", "\x1b[K", "\x1b[J"
_STYLING = re.compile(r"\x1b\[[0-9;]*m")


class LiveLines:
    """Draws lines that are final and, below them, lines that change.

    Only lines that differ are written. The changing ones never outgrow the screen: of more, the
    last are shown, and all of them once they are final. Between drawings the cursor stands at
    the end of the last changing line, hidden; without any, at the start of an empty line.
    """

    def __init__(
        self, out: TextIO, size: Callable[[], os.terminal_size] = shutil.get_terminal_size
    ) -> None:
        self._out = out
        self._size = size
        self._shown: list[str] = []
        self._columns = size().columns
        self._hidden = False

    @property
    def width(self) -> int:
        """Cells a line may take. The last column stays free: some terminals erase it."""
        return max(self._size().columns - 1, 10)

    def draw(self, final: Sequence[str], live: Sequence[str] = ()) -> None:
        """Show final lines, once and for all, and below them the ones that may still change."""
        rows = self._size().lines
        visible = list(live[-max(rows - 2, 1) :])
        lines = [*final, *visible]
        if lines == self._shown and not final:
            return
        text = self._change(lines) + ("\n" if lines and not visible else "")
        self._shown = visible  # noted before it is true: Ctrl-C strikes inside of a write
        hide, self._hidden = "" if self._hidden else _HIDE, True
        self._out.write(f"{hide}{_BEGIN}{text}{_END}")
        self._out.flush()

    def close(self) -> None:
        """Leave what is shown and give the cursor back, on a line of its own."""
        self._out.write("\n" * bool(self._shown) + (_END + _RESET + _SHOW) * self._hidden)
        self._shown, self._hidden = [], False
        self._out.flush()

    def _change(self, lines: list[str]) -> str:
        """What turns the shown lines into these."""
        shown = self._shown
        pairs = zip(shown, lines, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if shown and same == len(shown):
            return "\n" * (len(lines) > same) + "\n".join(lines[same:])
        if same == len(lines):
            same = max(same - 1, 0)  # fewer lines: the cursor has to get to the last one's end
        move = self._up(same) + "\r" if shown else ""
        body = "\n".join(line + _ERASE_LINE for line in lines[same:])
        return move + (body + _ERASE_BELOW if shown else "\n".join(lines[same:]))

    def _up(self, same: int) -> str:
        """From the end of the last line shown to the line after the first `same` ones."""
        rows = len(self._shown) - 1 - same
        columns = self._size().columns
        if columns < self._columns:  # made narrower: what was one row may be several now
            rows += sum(self._extra(line, columns) for line in self._shown[same:])
        self._columns = columns
        return f"\x1b[{rows}A" if rows else ""

    def _extra(self, line: str, columns: int) -> int:
        from rich.cells import cell_len

        return max(cell_len(_STYLING.sub("", line)) - 1, 0) // columns
