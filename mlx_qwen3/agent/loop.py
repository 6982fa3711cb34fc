"""One turn: the model answers, or calls tools and reads their results until it does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mlx_qwen3.agent.history import Message, Said, tool_result
from mlx_qwen3.agent.results import cut
from mlx_qwen3.agent.tools import Outcome, Tool
from mlx_qwen3.text.tool_calls import ToolCall

if TYPE_CHECKING:
    from mlx_qwen3.generation.output import Event

Approve = Callable[[ToolCall], bool]

REFUSED = "The user did not allow this call."
CANCELLED = "The user cancelled this call."


@dataclass(frozen=True)
class ToolResult:
    """What came of a call, as the model reads it. Streams beside generation's events."""

    call: ToolCall
    text: str
    is_error: bool = False
    server: str = ""
    kind: Literal["tool_result"] = "tool_result"


@dataclass
class Turn:
    """Runs one turn and keeps the history right, however it ends.

    reply: starts a reply to messages. messages: the history, appended to as things are said.
    pending: messages that go into the history with the first thing said to them. tools: by the
    name the model knows. approve: asked before each call. max_steps: replies that may call.
    limit: characters of a result that the model gets to read.
    """

    reply: Callable[[Sequence[Message]], Generator[Event, None, None]]
    messages: list[Message]
    pending: list[Message]
    tools: Mapping[str, Tool]
    approve: Approve
    max_steps: int
    limit: int
    _calls: list[tuple[ToolCall, str | None]] = field(default_factory=list)  # not answered yet

    def run(
        self, events: Generator[Event, None, None]
    ) -> Generator[Event | ToolResult, None, None]:
        """Everything that happens in the turn, given the events of its first reply."""
        for step in range(1, self.max_steps + 1):
            said = yield from self._listen(events)
            if said.completion is None or said.completion.finish_reason != "tool_calls":
                return
            theirs = not all(map(self._is_ours, said.calls))
            yield from self._answer(last=step == self.max_steps)
            if step == self.max_steps or theirs:
                return  # what is left is for the caller to answer
            events = self.reply(self.messages)

    def _listen(self, events: Generator[Event, None, None]) -> Generator[Event, None, Said]:
        """Pass a reply on; what was said of it stays in the history, also when it is stopped."""
        said = Said()
        try:
            with contextlib.closing(events):
                for event in events:
                    said.add(event)
                    yield event
        finally:
            if said:
                self._keep(said)
        return said

    def _keep(self, said: Said) -> None:
        first = 1 + sum(len(message.get("tool_calls") or ()) for message in self.messages)
        self.messages += [*self.pending, said.message(first)]
        self.pending = []
        self._calls = said.numbered(first)
        if said.completion is None:
            self._cancel()

    def _answer(self, *, last: bool) -> Generator[ToolResult, None, None]:
        self._calls = [one for one in self._calls if self._is_ours(one[0])]
        try:
            while self._calls:
                result = self._result(self._calls[0][0], last)
                self._note(result.text)
                yield result
        finally:
            self._cancel()

    def _cancel(self) -> None:
        while self._calls:
            self._note(CANCELLED)

    def _note(self, text: str) -> None:
        call, call_id = self._calls.pop(0)
        self.messages.append(tool_result(call, text, call_id))

    def _is_ours(self, call: ToolCall) -> bool:
        """Whether this loop answers the call, and not the caller of the conversation."""
        tool = self.tools.get(call.name)
        return call.error is not None or tool is None or tool.run is not None

    def _result(self, call: ToolCall, last: bool) -> ToolResult:
        outcome = self._limit_reached() if last else self._outcome(call)
        text = outcome.text
        if outcome.is_error and not text.lower().startswith("error"):
            text = f"Error: {text}"
        tool = self.tools.get(call.name)
        return ToolResult(
            call, cut(text, self.limit), outcome.is_error, tool.server if tool else ""
        )

    def _limit_reached(self) -> Outcome:
        return Outcome(f"not run: the limit of {self.max_steps} steps is reached", is_error=True)

    def _outcome(self, call: ToolCall) -> Outcome:
        if call.error is not None:
            return Outcome(call.error, is_error=True)
        tool = self.tools.get(call.name)
        if tool is None or tool.run is None:
            names = ", ".join(self.tools) or "none"
            return Outcome(f"there is no tool {call.name!r}; there are: {names}", is_error=True)
        if not self.approve(call):
            return Outcome(REFUSED)
        return tool.run(call.arguments)
