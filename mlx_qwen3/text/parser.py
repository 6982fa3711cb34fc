"""What the model writes, sorted as it streams: thinking, answer, tool calls.

A state is a method that takes what it can from the buffer and says whether to go on; only text
that could still be part of a tag, or whitespace that belongs to one, stays in the buffer. Every
decision depends on the text alone, so it does not matter how the text was cut into pieces.

    begin -> thinking_lead -> thinking -> answer_lead -> answer <-> call -> after_call -> answer
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mlx_qwen3.text.tool_calls import (
    CLOSE,
    FUNCTION,
    OPEN,
    CallScanner,
    ToolCall,
    Tools,
    partial_suffix,
    read_call,
)

__all__ = ["Kind", "Piece", "StreamParser", "ToolCall"]

Kind = Literal["thinking", "answer", "tool_call"]

THINK, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Piece:
    """Some text of one kind; for a tool call the whole call as written, and what it says."""

    kind: Kind
    text: str
    tool_call: ToolCall | None = None


class StreamParser:
    """Splits the text of one assistant turn.

    in_thinking: the prompt already opened <think> (`thinking_state(prompt) == "open"`), so only
        </think> will come.
    expect_thinking: look for think tags; False leaves them in the answer (raw completions).
    parse_tools: look for tool calls; False leaves them in the answer.
    verbatim: the answer is either tool calls or one text as it is, whatever tags are in it.
    tools: schemas of the tools on offer; they give the values of the XML form their types.

    What the chat template strips is no part of a text: newlines around the thinking and before
    the answer that follows it, whitespace around tool calls. Thinking that never ends stays
    thinking. Never raises.
    """

    def __init__(
        self,
        *,
        in_thinking: bool = False,
        expect_thinking: bool = True,
        parse_tools: bool = True,
        verbatim: bool = False,
        tools: Tools | None = None,
    ) -> None:
        self._in_thinking = in_thinking
        self._verbatim = verbatim
        self._parse_tools = parse_tools
        self._tools = tools
        think_ends = [THINK_END] if expect_thinking or in_thinking else []
        self._tags = think_ends + ([OPEN, FUNCTION] if parse_tools else [])
        self._marks = re.compile("|".join(think_ends + [OPEN, _CODER_CALL] * parse_tools) or "(?!)")
        self._buffer = ""
        self._pieces: list[Piece] = []
        self._finished = False
        self._line_start = True  # nothing of the answer written yet
        self._scanner = CallScanner()
        self._state: Callable[[], bool] = (
            self._begin if expect_thinking or in_thinking else self._answer
        )

    def feed(self, text: str) -> list[Piece]:
        """Take more text; return what is now certain, in order."""
        self._buffer += text
        return self._run()

    def finish(self) -> list[Piece]:
        """The turn has ended: return what was held back. A partial tag was text after all."""
        self._finished = True
        return self._run()

    @property
    def open_call(self) -> str:
        """The text of the tool call that is being written, from its first tag on; "" for none."""
        return self._buffer if self._state == self._call else ""

    def _run(self) -> list[Piece]:
        while self._state():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    def _emit(self, kind: Kind, text: str) -> None:
        if text:
            self._pieces.append(Piece(kind, text))

    def _enter(self, state: Callable[[], bool], drop: int = 0) -> bool:
        self._buffer = self._buffer[drop:]
        self._state = state
        return True

    # --- the states

    def _begin(self) -> bool:
        rest = self._buffer.lstrip()
        if rest.startswith(THINK):
            return self._enter(self._thinking_lead, len(self._buffer) - len(rest) + len(THINK))
        if rest.startswith(THINK_END):
            return self._enter(self._answer_lead, len(self._buffer) - len(rest) + len(THINK_END))
        if not self._finished and any(tag.startswith(rest) for tag in (THINK, THINK_END)):
            return False
        return self._enter(self._thinking_lead if self._in_thinking else self._answer)

    def _thinking_lead(self) -> bool:
        return self._skip_newlines(self._thinking)

    def _answer_lead(self) -> bool:
        return self._skip_newlines(self._answer)

    def _skip_newlines(self, then: Callable[[], bool]) -> bool:
        self._buffer = self._buffer.lstrip("\n")
        return bool(self._buffer) and self._enter(then)

    def _thinking(self) -> bool:
        end = self._buffer.find(THINK_END)
        if end >= 0:
            self._emit("thinking", self._buffer[:end].rstrip("\n"))
            return self._enter(self._answer_lead, end + len(THINK_END))
        sure = len(self._buffer)
        if not self._finished:
            sure -= partial_suffix(self._buffer, [THINK_END])
        sure = len(self._buffer[:sure].rstrip("\n"))
        self._emit("thinking", self._buffer[:sure])
        return self._wait(sure)

    def _answer(self) -> bool:
        if self._verbatim:
            return self._plain_answer()
        for mark in self._marks.finditer(self._buffer):
            before = self._buffer[: mark.start()]
            if mark[0] == THINK_END:  # nothing was open
                self._say(before)
                return self._enter(self._answer, mark.end())
            if mark[0] == OPEN or self._starts_line(before):
                self._say(before.rstrip())
                self._scanner = CallScanner()
                return self._enter(self._call, mark.start())
        sure = len(self._buffer) if self._finished else self._sure_answer()
        self._say(self._buffer[:sure])
        return self._wait(sure)

    def _plain_answer(self) -> bool:
        """Only where the answer begins may a call begin."""
        rest = self._buffer.lstrip()
        if self._parse_tools and self._line_start:
            if rest.startswith(_CALL_STARTS):
                self._scanner = CallScanner()
                return self._enter(self._call, len(self._buffer) - len(rest))
            if not self._finished and any(tag.startswith(rest) for tag in _CALL_STARTS):
                return False
        self._say(self._buffer)
        return self._wait(len(self._buffer))

    def _call(self) -> bool:
        end = self._scanner.end(self._buffer, self._finished)
        if end is None and not self._finished:
            return False
        raw = self._buffer[: self._scanner.last_resort() if end is None else end]
        call = read_call(raw, self._tools, truncated=end is None)
        self._pieces.append(Piece("tool_call", raw, call))
        return self._enter(self._after_call, len(raw))

    def _after_call(self) -> bool:
        self._buffer = rest = self._buffer.lstrip()
        if rest.startswith(CLOSE):
            return self._enter(self._after_call, len(CLOSE))
        if not rest or (CLOSE.startswith(rest) and not self._finished):
            return False
        self._line_start = True
        return self._enter(self._answer)

    # --- what they need

    def _wait(self, sure: int) -> bool:
        self._buffer = "" if self._finished else self._buffer[sure:]
        return False

    def _say(self, text: str) -> None:
        self._line_start = self._line_start and not text
        self._emit("answer", text)

    def _starts_line(self, before: str) -> bool:
        """<function=...> is a call only at the start of a line: elsewhere it is prose."""
        said = before.rstrip()
        return "\n" in before[len(said) :] or (not said and self._line_start)

    def _sure_answer(self) -> int:
        """Length of the answer text that belongs to no tag, nor to the space before a call."""
        partial = _PARTIAL_CODER_CALL.search(self._buffer) if self._parse_tools else None
        held = partial[0] if partial else ""
        sure = len(self._buffer) - max(len(held), partial_suffix(self._buffer, self._tags))
        return len(self._buffer[:sure].rstrip()) if self._parse_tools else sure


_CALL_STARTS = (OPEN, FUNCTION)
_CODER_CALL = r"<function=[\w.:/-]+>"
_PARTIAL_CODER_CALL = re.compile(r"<function=[\w.:/-]*\Z")
