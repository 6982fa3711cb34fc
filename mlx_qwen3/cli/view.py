"""A turn on a terminal: thinking folded, markdown as it streams, tool calls and their results."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console
from rich.text import Text

from mlx_qwen3.cli.live import LiveLines
from mlx_qwen3.cli.markdown import PROSE, MarkdownStream
from mlx_qwen3.cli.terminal import CONTROLS
from mlx_qwen3.cli.wrap import ansi, clip, prefixed, wrap

if TYPE_CHECKING:
    from mlx_qwen3.agent.loop import ToolResult
    from mlx_qwen3.generation.output import Event
    from mlx_qwen3.text.tool_calls import ToolCall

Lines = list[Text]

_GLIMPSE = 4  # lines of a folded thought that can be seen while it lasts
_CALL_LINES = 12  # of a call's arguments
_RESULT_LINES = 6
_QUICK = 0.01  # seconds of drawing that nobody feels
_SHARE = 3  # times that drawing took are waited before drawing again


class Part(Protocol):
    """A stretch of a reply that is all of one kind."""

    def feed(self, text: str) -> None:
        """Take more text."""

    def take(self, width: int) -> tuple[Lines, Lines]:
        """(lines that are final and new, lines that may still change)."""

    def finish(self, width: int) -> Lines:
        """The rest, all of it final."""


class ThinkingPart:
    """Dimmed text. Folded, only its last lines are seen while it lasts, and then one line.

    tokens: how many have been thought; the count stands beside the text.
    """

    def __init__(self, *, folded: bool) -> None:
        self.tokens = 0
        self._folded = folded
        self._complete: list[str] = []  # paragraphs that are not out yet
        self._open = ""

    def feed(self, text: str) -> None:
        """Take more text."""
        *complete, self._open = (self._open + _plain(text)).split("\n")
        self._complete += complete

    def take(self, width: int) -> tuple[Lines, Lines]:
        """Folded: nothing is final. Else every paragraph is that has ended."""
        if self._folded:
            self._complete = [text for text in self._complete if text.strip()][-_GLIMPSE:]
            return [], [self._count("thinking"), *self._lines(width)[-_GLIMPSE:]]
        opened, self._open = self._open, ""
        done = self._lines(width) if self._complete else []
        self._complete, self._open = [], opened
        return done, [*self._lines(width), self._count("thinking")]

    def finish(self, width: int) -> Lines:
        """The line it folds to; unfolded, the last of its lines and the count."""
        return [*([] if self._folded else self._lines(width)), self._count("thought for")]

    def _lines(self, width: int) -> Lines:
        bar = Text("│ ", "dim")
        paragraphs = [*self._complete, self._open] if self._open else self._complete
        text = Text("\n".join(paragraphs), "dim")
        return prefixed(wrap(text, min(width, PROSE) - 2), bar, bar) if paragraphs else []

    def _count(self, word: str) -> Text:
        tokens = f" {self.tokens:,} token{'s' * (self.tokens != 1)}"
        return Text(word + tokens if self.tokens else word.partition(" ")[0], "dim")


class ChatView:
    """Draws the events of one turn. `finish` in the end, whatever ends it.

    folded: thoughts leave one line behind. whole_calls: show arguments to their end, for somebody
    who has to decide about them.
    """

    def __init__(self, out: TextIO, *, folded: bool = True, whole_calls: bool = False) -> None:
        self._call_lines = 10**6 if whole_calls else _CALL_LINES
        self._live = LiveLines(out)
        self._console = Console(file=out, force_terminal=True)
        self._folded = folded
        self._part: Part | None = None
        self._kind = ""
        self._calls = 0  # of this reply
        self._several = False  # calls were in the reply whose results come now
        self._drawn = self._took = 0.0

    def show(self, event: Event | ToolResult) -> None:
        """Draw an event; text waits for a moment where drawing it is slow."""
        if event.kind == "tool_result":
            self._begin("tool_result")
            self._draw(self._result(event))
        elif event.kind == "end":
            self._end_part(event)
            self._several, self._calls = self._calls > 1, 0
        elif event.tool_call is not None:
            self._begin("tool_call", event)
            self._calls += 1
            self._draw(self._call(event.tool_call))
        elif event.kind in ("thinking", "answer"):
            self._stream(event)

    def running(self, call: ToolCall) -> None:
        """Say that a call is running, until its result is shown."""
        name = clip(_plain(call.name), 40)
        self._draw([], [Text(f"  running {name} · Ctrl-C cancels", "dim")])

    def finish(self) -> None:
        """Draw what is there and give the terminal back."""
        try:
            self._end_part(None)
            self._draw([])
        finally:
            self._live.close()

    def _stream(self, event: Event) -> None:
        self._begin(event.kind, event)
        if self._part is None:
            thinks = event.kind == "thinking"
            self._part = ThinkingPart(folded=self._folded) if thinks else MarkdownStream()
        self._count(event)
        self._part.feed(event.text)
        # Long tables are slow to draw: never most of the time goes into that.
        pause = 0.0 if self._took < _QUICK else _SHARE * self._took
        if time.perf_counter() - self._drawn >= pause:
            self._draw(*self._part.take(self._live.width))

    def _count(self, event: Event | None) -> None:
        if event is not None and isinstance(self._part, ThinkingPart):
            usage = event.completion.usage.thinking_tokens if event.completion else 0
            self._part.tokens = usage or event.thinking_tokens or self._part.tokens

    def _begin(self, kind: str, event: Event | None = None) -> None:
        """Set kinds apart by an empty line; a call and its result belong together."""
        if kind == self._kind and self._part is not None:
            return
        self._end_part(event)
        if (kind, self._kind) not in _TOGETHER:
            self._draw([Text()])
        self._kind = kind

    def _end_part(self, event: Event | None) -> None:
        if self._part is not None:
            self._count(event)
            part, self._part = self._part, None
            self._draw(part.finish(self._live.width))

    def _draw(self, final: Lines, live: Lines | None = None) -> None:
        began = time.perf_counter()
        self._live.draw(ansi(final, self._console), ansi(live or [], self._console))
        self._drawn = time.perf_counter()
        self._took = self._drawn - began

    def _call(self, call: ToolCall) -> Lines:
        if call.error is not None:
            text = Text.assemble(_plain(call.raw), (f" ({_plain(call.error)})", "red"))
        else:
            text = Text.assemble((_plain(call.name), "bold cyan"), f"({_arguments(call)})")
        lines = wrap(text, self._live.width - 2)
        return _shortened(prefixed(lines, Text("● ", "cyan"), Text("  ")), self._call_lines)

    def _result(self, result: ToolResult) -> Lines:
        name = f"{result.call.name}: " if self._several else ""
        rows = _plain(name + (result.text.strip("\n") or "(nothing)")).split("\n")
        style = "red" if result.is_error else "dim"
        lines = [Text(clip(row, self._live.width - 4), style) for row in rows]
        return _shortened(prefixed(lines, Text("  └ ", "dim"), Text("    ")), _RESULT_LINES)


_TOGETHER = {
    ("tool_call", "tool_call"),
    ("tool_result", "tool_call"),
    ("tool_result", "tool_result"),
}


def _arguments(call: ToolCall) -> str:
    values = call.arguments.items()
    return _plain(
        ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in values)
    )


def _plain(text: str) -> str:
    """Text that cannot control the terminal, of which lines can be measured."""
    return text.translate(CONTROLS).replace("\t", "    ")


def _shortened(lines: Lines, limit: int) -> Lines:
    if len(lines) <= limit:
        return lines
    left = len(lines) - limit + 1
    return [*lines[: limit - 1], Text(f"    … {left} more lines", "dim")]
