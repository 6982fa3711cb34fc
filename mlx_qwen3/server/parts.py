"""A reply's events -> its parts in order, as APIs of blocks and items have them.

A part begins, grows and ends. What a stream says of it and what the whole reply holds come from
the same parts, so they cannot differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlx_qwen3.generation.output import Completion, Event, TokenLogprob
from mlx_qwen3.text.tool_calls import ToolCall

PartKind = Literal["thinking", "answer", "call"]
Verb = Literal["begin", "grow", "end"]


@dataclass
class Part:
    """One part. text: of a call, its arguments as JSON.

    complete: it ended by itself, and was not cut off. call: what a complete call says. logprobs:
    of the tokens of an answer, where they were asked for.
    """

    kind: PartKind
    index: int
    id: str
    name: str = ""
    text: str = ""
    complete: bool = False
    call: ToolCall | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """What happened to a part; text, logprobs: what is new, where it grew.

    One event may change a part several times, and `part` is as the last of them left it.
    """

    verb: Verb
    part: Part
    text: str = ""
    logprobs: Sequence[TokenLogprob] = ()


class AnswerTokens:
    """Which tokens of a reply make up its answer, event by event."""

    def __init__(self) -> None:
        self._begun = False

    def of(self, event: Event) -> list[TokenLogprob]:
        """The answer's tokens that an event brings; none where they were not asked for.

        Not those of thinking and of tool calls, nor the white space that follows a thought.
        """
        if event.kind != "answer" or not event.logprobs:
            return []
        tokens = list(event.logprobs)
        while not self._begun and tokens and not _part_of(event.text, tokens[0].token):
            del tokens[0]
        self._begun = True
        return tokens


def _part_of(text: str, token: str) -> bool:
    return bool(token.strip()) or text.startswith(token)


def never(name: str) -> bool:
    """No tool's calls go out before they are complete."""
    return False


@dataclass
class Parts:
    """The parts of one reply, as its events are taken in.

    new_id: kind -> an id. live: whether calls of this tool go out as they are written; the others
    wait until they can be read, for what was said to a client cannot be taken back.
    """

    new_id: Callable[[PartKind], str]
    live: Callable[[str], bool] = never
    all: list[Part] = field(default_factory=list)
    completion: Completion | None = None
    _open: Part | None = None
    _tokens: AnswerTokens = field(default_factory=AnswerTokens)

    def take(self, event: Event) -> list[Change]:
        """What this event changes; "end" ends whatever is open."""
        if event.completion is not None:
            self.completion = event.completion
            return self._close(complete=event.completion.finish_reason != "length")
        if event.kind == "tool_call":
            return self._call(event)
        if event.warning is not None and self._open is not None and self._open.kind == "call":
            return self._close(complete=False)  # its text went out as far as it made sense
        return self._text("thinking" if event.kind == "thinking" else "answer", event)

    @property
    def closed(self) -> list[Part]:
        """Those that have ended."""
        return [part for part in self.all if part is not self._open]

    def _text(self, kind: PartKind, event: Event) -> list[Change]:
        changes: list[Change] = []
        if self._open is None or self._open.kind != kind:
            changes = [*self._close(), self._begin(kind)]
        if event.text:
            changes.append(self._grow(event.text, self._tokens.of(event)))
        return changes

    def _call(self, event: Event) -> list[Change]:
        if event.call is None or (event.tool_call is None and not self.live(event.call.name)):
            return []
        name, new = event.call.name, event.call.arguments
        changes: list[Change] = []
        if self._open is None or self._open.kind != "call":
            changes = [*self._close(), self._begin("call", name)]
            if event.tool_call is not None:  # nothing went out before
                new = json.dumps(event.tool_call.arguments, ensure_ascii=False)
        if new:
            changes.append(self._grow(new))
        if event.tool_call is not None:
            changes += self._close(call=event.tool_call)
        return changes

    def _begin(self, kind: PartKind, name: str = "") -> Change:
        part = Part(kind, len(self.all), self.new_id(kind), name)
        self.all.append(part)
        self._open = part
        return Change("begin", part)

    def _grow(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Change:
        part = self._open
        if part is None:
            raise RuntimeError("no part is open")
        part.text += text
        part.logprobs += logprobs
        return Change("grow", part, text, logprobs)

    def _close(self, *, complete: bool = True, call: ToolCall | None = None) -> list[Change]:
        part, self._open = self._open, None
        if part is None:
            return []
        part.complete, part.call = complete, call
        return [Change("end", part)]
