"""tokens -> events: text, sorted into thinking, answer and tool calls, cut at stop strings.

Knows nothing of models: it is fed tokens one at a time, whoever generated them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mlx_qwen3.generation.loop import Token
from mlx_qwen3.text.parser import Piece, StreamParser
from mlx_qwen3.text.stops import StopStrings
from mlx_qwen3.text.tokenizer import Tokenizer
from mlx_qwen3.text.tool_calls import ToolCall

EventKind = Literal["thinking", "answer", "tool_call", "end"]
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Usage:
    """Tokens of one reply. completion_tokens includes thinking_tokens and the end token."""

    prompt_tokens: int
    completion_tokens: int
    thinking_tokens: int = 0

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
class Completion:
    """A whole reply.

    text: the answer; thinking apart from it. token_ids: every generated token, in order.
    finish_reason: "stop" (end token or stop string), "length" (max_tokens), "tool_calls" (it
    ended by itself, with calls to answer). peak_memory_bytes: MLX's highest so far.
    proposed_tokens, accepted_tokens: of speculation; how many were tried depends on the clock.
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
    proposed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True)
class Event:
    """A piece of a reply as it streams.

    kind "thinking" and "answer": text is new text. "tool_call": text is the call as written,
    tool_call what it says. "end": completion is the whole reply, text is empty.
    """

    kind: EventKind
    text: str = ""
    tool_call: ToolCall | None = None
    completion: Completion | None = None


@dataclass
class Output:
    """The text side of one reply.

    eos_ids: tokens that end it and are not part of the text.
    """

    tokenizer: Tokenizer
    parser: StreamParser
    stops: StopStrings
    eos_ids: Collection[int]
    finish_reason: FinishReason | None = None
    token_ids: list[int] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._detokenizer = self.tokenizer.detokenizer(skip_special_tokens=True)
        self._text: dict[str, list[str]] = {"thinking": [], "answer": []}

    def add(self, token: Token) -> list[Event]:
        """Take the next token; sets finish_reason when it ends the reply."""
        self.token_ids.append(token.token_id)
        if token.logprob is not None:
            self.logprobs.append(self._spell(token, token.logprob))
        if token.token_id in self.eos_ids:
            self.finish_reason = "stop"
            return []
        return self._route(self.parser.feed(self._detokenizer.add(token.token_id)))

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
        return events

    def text(self, kind: Literal["thinking", "answer"]) -> str:
        """Everything of one kind so far."""
        return "".join(self._text[kind])

    @property
    def _stopped(self) -> bool:
        """A stop string was met: what follows it is not part of the reply."""
        return self.stops.feed("")[1] is not None

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
                self.tool_calls.append(piece.tool_call)
                events.append(Event("tool_call", piece.text, piece.tool_call))
        return events

    def _say(self, kind: Literal["thinking", "answer"], text: str) -> list[Event]:
        if not text:
            return []
        self._text[kind].append(text)
        return [Event(kind, text)]

    def _spell(self, token: Token, logprob: float) -> TokenLogprob:
        top: list[Any] = [(one, self.tokenizer.decode([one]), value) for one, value in token.top]
        return TokenLogprob(
            token.token_id, self.tokenizer.decode([token.token_id]), logprob, tuple(top)
        )
