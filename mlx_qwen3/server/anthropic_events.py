"""A reply's events -> the blocks of an Anthropic message, whole or as they stream."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen3.generation.output import Completion, Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.parts import Change, Part, PartKind, Parts, never

Json = dict[str, Any]
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def _block_id(kind: PartKind) -> str:
    return new_id("toolu_")  # text and thinking blocks have no names


@dataclass
class MessageEvents:
    """One message in the making.

    request: what it replies to. max_tokens: as asked for; a request may allow less. shows_thinking:
    False leaves thinking blocks empty. live: see Parts.
    """

    model: str
    request: Request
    max_tokens: int
    shows_thinking: bool = True
    live: Callable[[str], bool] = never
    id: str = field(default_factory=lambda: new_id("msg_"))

    def __post_init__(self) -> None:
        self._parts = Parts(_block_id, self.live)

    def start(self) -> Json:
        """The first event: a message with nothing in it yet."""
        usage = {**self._usage(None), "output_tokens": 0}
        return {"type": "message_start", "message": self._message([], None, None, usage)}

    def take(self, event: Event) -> list[Json]:
        """The API's events for one of a reply; after the last one the message is complete."""
        said = [one for change in self._parts.take(event) for one in self._say(change)]
        return [*said, *self._end(event.completion)] if event.completion else said

    def message(self) -> Json:
        """The whole message, once "end" was taken."""
        completion = self._parts.completion
        if completion is None:
            raise RuntimeError("the reply has not ended")
        blocks = [self._block(part) for part in self._parts.all]
        return self._message(blocks, *self._stop(completion), self._usage(completion))

    def _message(
        self, blocks: list[Json], reason: str | None, stop: str | None, usage: Json
    ) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }

    def _stop(self, completion: Completion) -> tuple[str, str | None]:
        """Why it ended, and the stop sequence that ended it."""
        reason = completion.finish_reason
        if reason == "stop" and completion.stop is not None:
            return "stop_sequence", completion.stop
        if reason == "length" and self.request.max_tokens < self.max_tokens:
            return "model_context_window_exceeded", None
        return _REASONS[reason], None

    def _usage(self, completion: Completion | None) -> Json:
        """Tokens; what came from a cache is counted apart, as Anthropic does."""
        usage = completion and completion.usage
        cached = usage.cached_tokens if usage else 0
        counts = {
            "input_tokens": len(self.request.prompt_ids) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }
        if not usage:
            return counts
        details = {"thinking_tokens": usage.thinking_tokens}
        return {
            **counts,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": details,
        }

    def _block(self, part: Part) -> Json:
        text = "" if self._hidden(part) else part.text
        return _block(part, text, {} if part.call is None else part.call.arguments)

    def _hidden(self, part: Part) -> bool:
        return part.kind == "thinking" and not self.shows_thinking

    # --- streaming

    def _say(self, change: Change) -> list[Json]:
        part = change.part
        if change.verb == "begin":  # it may have grown by now, and yet begins empty
            return [
                _at(part, "content_block_start", content_block=_block(part, "", {}, signed=False))
            ]
        if change.verb == "end":
            return [*_signed(part), _at(part, "content_block_stop")]
        kind, name = _DELTAS[part.kind]
        delta = {"type": kind, name: change.text}
        return [] if self._hidden(part) else [_at(part, "content_block_delta", delta=delta)]

    def _end(self, completion: Completion) -> list[Json]:
        reason, stop = self._stop(completion)
        delta = {"stop_reason": reason, "stop_sequence": stop}
        usage = self._usage(completion)
        return [
            {"type": "message_delta", "delta": delta, "usage": usage},
            {"type": "message_stop"},
        ]


# Kind of part -> its delta, and the field that has what is new.
_DELTAS: dict[PartKind, tuple[str, str]] = {
    "thinking": ("thinking_delta", "thinking"),
    "answer": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


def signature(thinking: str) -> str:
    """What clients want beside thinking. A digest: it proves nothing, and nobody here checks it."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def _block(part: Part, text: str, arguments: Json, *, signed: bool = True) -> Json:
    if part.kind == "thinking":
        sign = signature(part.text) if signed else ""
        return {"type": "thinking", "thinking": text, "signature": sign}
    if part.kind == "answer":
        return {"type": "text", "text": text}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}


def _signed(part: Part) -> list[Json]:
    if part.kind != "thinking":
        return []
    delta = {"type": "signature_delta", "signature": signature(part.text)}
    return [_at(part, "content_block_delta", delta=delta)]


def _at(part: Part, kind: str, **fields: Any) -> Json:
    return {"type": kind, "index": part.index, **fields}
