"""tokens -> events: text, sorted into thinking, answer and tool calls, cut at stop strings.

Knows nothing of models: it is fed tokens one at a time, whoever generated them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mlx_qwen3.generation.loop import Token
from mlx_qwen3.text.call_progress import CallProgress
from mlx_qwen3.text.parser import Piece, StreamParser
from mlx_qwen3.text.stops import StopStrings
from mlx_qwen3.text.tokenizer import Tokenizer
from mlx_qwen3.text.tool_calls import ToolCall, Tools

EventKind = Literal["thinking", "answer", "tool_call", "end"]
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one reply. completion_tokens includes thinking_tokens and the end token.

    cached_tokens: how many of the prompt's had been read before. It says how the reply was
    computed, not what it is: replies that differ in it alone are equal.
    """

    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int = 0
    cached_tokens: int = field(default=0, compare=False)

    @property
    def answer_tokens(self) -> int:
        """What is not thinking: answer, tool calls and the end token."""
        return self.completion_tokens - self.thinking_tokens

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token, its natural-log probability, and the most likely ones beside it."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Timing:
    """Seconds: loading the model, reading the prompt up to the first token, the tokens after."""

    load: float
    prefill: float
    decode: float
    tokens_per_second: float


@dataclass(frozen=True)
class ExpertUse:
    """What streamed experts took for one reply; other replies at the same time count with it.

    hit_rate: share of the experts its tokens needed, those of the prompt apart, that were in
    memory. bytes_per_token: read from files for each generated token. prompt_bytes: read for the
    prompt.
    """

    hit_rate: float
    bytes_per_token: float
    prompt_bytes: int


@dataclass(frozen=True)
class Completion:
    """A whole reply.

    text: the answer; thinking apart from it. token_ids: every generated token, in order.
    finish_reason: "stop" (end token or stop string), "length" (max_tokens), "tool_calls" (it
    ended by itself, with calls to answer). peak_memory_bytes: MLX's highest so far.
    parsed: under a schema, the answer as the object it is (of the pydantic class where the schema
    was one); None for tool calls and for a reply cut short. warnings: one line each about what is
    not as it should be, such as a tool call that is in `text` because it could not be read.
    stop: the stop string that ended it, None for any other end.
    experts: where they are streamed. It says how the reply was computed, not what it is.
    proposed_tokens, accepted_tokens: of speculation; how many were tried depends on the clock, so
    replies that differ in them alone are equal.
    """

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    peak_memory_bytes: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    parsed: Any = None
    warnings: tuple[str, ...] = ()
    stop: str | None = None
    proposed_tokens: int = field(default=0, compare=False)
    accepted_tokens: int = field(default=0, compare=False)
    experts: ExpertUse | None = field(default=None, compare=False)


@dataclass(frozen=True)
class CallDelta:
    """A tool call as it is written.

    index: which call of the reply, from 0; calls that turn out to be unreadable are counted, too.
    arguments: new JSON of its arguments; those of all its events, joined, are the whole object.
    """

    index: int
    name: str
    arguments: str = ""


@dataclass(frozen=True)
class Event:
    """A piece of a reply as it streams.

    kind "thinking" and "answer": text is new text. "tool_call": `call` has the name, and more
    of the arguments; when the call is complete, tool_call is what it says and text the call as
    written (before, None and empty). A call that cannot be read ends as an "answer" with its text
    and a warning. "end": completion is the whole reply, text is empty.
    thinking_tokens: tokens of thinking so far, tags included. logprobs: where they were asked
    for, the tokens since the event before, without those of thinking and the end token.
    """

    kind: EventKind
    text: str = ""
    tool_call: ToolCall | None = None
    completion: Completion | None = None
    call: CallDelta | None = None
    warning: str | None = None
    thinking_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass
class Output:
    """The text side of one reply.

    eos_ids: tokens that end it and are not part of the text. tools: those on offer.
    one_call: the reply ends with its first tool call.
    """

    tokenizer: Tokenizer
    parser: StreamParser
    stops: StopStrings
    eos_ids: Collection[int]
    tools: Tools | None = None
    one_call: bool = False
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._detokenizer = self.tokenizer.detokenizer(skip_special_tokens=True)
        self._text: dict[str, list[str]] = {"thinking": [], "answer": []}
        self._calls_begun = 0
        self._progress: CallProgress | None = None  # of the call being written
        self._fresh: list[TokenLogprob] = []  # not part of an event yet
        self._apart = False  # the answer's text so far ends with an unreadable call

    def add(self, token: Token, *, thinking: bool = False) -> list[Event]:
        """Take the next token; sets finish_reason when it ends the reply.

        thinking: whether it belongs to a thought.
        """
        self.token_ids.append(token.token_id)
        ends = token.token_id in self.eos_ids
        if token.logprob is not None:
            self.logprobs.append(self._spell(token, token.logprob))
            self._fresh += [] if ends or thinking else self.logprobs[-1:]
        if ends:
            self.finish_reason = "stop"
            return []
        events = self._route(self.parser.feed(self._detokenizer.add(token.token_id)))
        return self._with_logprobs(events if self._stopped else events + self._grow_call())

    def finish(self, reason: FinishReason) -> list[Event]:
        """No more tokens: release what was held back, unless a stop string ended the answer."""
        events: list[Event] = []
        if not self._stopped:
            held = self.parser.feed(self._detokenizer.finish())
            events += self._route([*held, *self.parser.finish()])
        if self._stopped:
            reason = "stop"  # in text that was held back until now, perhaps
        else:
            events += self._say("answer", self.stops.finish())
        if reason == "stop" and self.tool_calls:
            reason = "tool_calls"
        self.finish_reason = reason
        return self._with_logprobs(events)

    def text(self, kind: Literal["thinking", "answer"]) -> str:
        """Everything of one kind so far."""
        return "".join(self._text[kind])

    @property
    def stop(self) -> str | None:
        """The stop string that was met, if one was."""
        return self.stops.feed("")[1]

    @property
    def _stopped(self) -> bool:
        """A stop string was met, or the one call made: what follows is not part of the reply."""
        return self.stop is not None or (self.one_call and bool(self.tool_calls))

    def _route(self, pieces: Sequence[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if piece.kind == "thinking":
                events += self._say("thinking", piece.text)
            elif piece.kind == "answer":
                safe, hit = self.stops.feed(piece.text)
                events += self._say("answer", safe)
                if hit is not None:
                    self.finish_reason = "stop"
                    break
            elif piece.tool_call is not None:
                # Text held for a stop string comes before the call, and can no longer become one.
                events += self._say("answer", self.stops.finish())
                events += self._end_call(piece.tool_call)
                if self._stopped:
                    self.finish_reason = "tool_calls"
                    break
        return events

    def _with_logprobs(self, events: list[Event]) -> list[Event]:
        if not events or not self._fresh:
            return events
        first = replace(events[0], logprobs=tuple(self._fresh))
        self._fresh.clear()
        return [first, *events[1:]]

    def _grow_call(self) -> list[Event]:
        """What is new of the call being written."""
        text = self.parser.open_call
        if not text:
            return []
        if self._progress is None:
            self._progress = CallProgress(self.tools)
        known = self._progress.name is not None
        new = self._progress.update(text)
        if self._progress.name is None or (known and not new):
            return []
        return [Event("tool_call", call=self._delta(self._progress.name, new))]

    def _end_call(self, call: ToolCall) -> list[Event]:
        progress, self._progress = self._progress or CallProgress(self.tools), None
        announced = progress.name is not None
        rest = progress.finish(call)
        events: list[Event] = []
        if call.error is None:
            self.tool_calls.append(call)
            events = [Event("tool_call", call.raw, call, call=self._delta(call.name, rest))]
        else:
            events = self._unreadable(call, call.error)
        self._calls_begun += announced or call.error is None
        return events

    def _delta(self, name: str, new: str) -> CallDelta:
        return CallDelta(self._calls_begun, name, new)

    def _unreadable(self, call: ToolCall, error: str) -> list[Event]:
        """A call that makes no sense is text, on a line of its own."""
        self.warnings.append(error)
        text = "\n" + call.raw if self._text["answer"] else call.raw
        self._text["answer"].append(text)
        self._apart = True
        return [Event("answer", text, warning=error)]

    def _say(self, kind: Literal["thinking", "answer"], text: str) -> list[Event]:
        if not text:
            return []
        if kind == "answer" and self._apart:
            text, self._apart = "\n" + text, False
        self._text[kind].append(text)
        return [Event(kind, text)]

    def _spell(self, token: Token, logprob: float) -> TokenLogprob:
        top: list[Any] = [(one, self.tokenizer.decode([one]), value) for one, value in token.top]
        return TokenLogprob(
            token.token_id, self.tokenizer.decode([token.token_id]), logprob, tuple(top)
        )
