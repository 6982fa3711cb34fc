"""The items of a response, and the events in which they grow: what OpenAI calls each part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlx_qwen3.generation.output import TokenLogprob
from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.openai_parts import TokenBytes, chat_logprobs
from mlx_qwen3.server.parts import Change, Part, PartKind, Verb

Json = dict[str, Any]
_PREFIXES: dict[PartKind, str] = {"thinking": "rs_", "answer": "msg_", "call": "fc_"}
# Kind of part -> the events in which its text grows and ends, and the field with all of it.
_EVENTS: dict[PartKind, tuple[str, str]] = {
    "thinking": ("response.reasoning_text", "text"),
    "answer": ("response.output_text", "text"),
    "call": ("response.function_call_arguments", "arguments"),
}


def item_id(kind: PartKind) -> str:
    """A name for an item."""
    return new_id(_PREFIXES[kind])


class Items:
    """Writes parts as items. token_bytes: the tokenizer's, for logprobs."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._events: dict[Verb, Callable[[Change], list[Json]]] = {
            "begin": self._begun,
            "grow": self._grown,
            "end": self._ended,
        }

    def item(self, part: Part) -> Json:
        """A part that has ended, as an item."""
        status = "completed" if part.complete else "incomplete"
        return _item(part, status, part.text, [self._content(part)])

    def events(self, change: Change) -> list[Json]:
        """The events of a change, without their numbers."""
        return self._events[change.verb](change)

    def _begun(self, change: Change) -> list[Json]:
        part = change.part  # it may have grown by now, and yet begins empty
        added = _of_item("response.output_item.added", part, _item(part, "in_progress", "", []))
        if part.kind == "call":
            return [added]
        content = _content(part.kind, "", [])
        return [added, _inside("response.content_part.added", part, {"part": content})]

    def _grown(self, change: Change) -> list[Json]:
        part, name = change.part, _EVENTS[change.part.kind][0]
        said = {"delta": change.text, **self._logprobs(part, change.logprobs)}
        return [_inside(f"{name}.delta", part, said)]

    def _ended(self, change: Change) -> list[Json]:
        part = change.part
        name, field = _EVENTS[part.kind]
        whole = {field: part.text, **self._logprobs(part, part.logprobs)}
        said = [_inside(f"{name}.done", part, whole)]
        if part.kind != "call":
            content = {"part": self._content(part)}
            said.append(_inside("response.content_part.done", part, content))
        return [*said, _of_item("response.output_item.done", part, self.item(part))]

    def _content(self, part: Part) -> Json:
        return _content(part.kind, part.text, self._spelled(part.logprobs))

    def _logprobs(self, part: Part, tokens: Sequence[TokenLogprob]) -> Json:
        return {"logprobs": self._spelled(tokens)} if part.kind == "answer" else {}

    def _spelled(self, tokens: Sequence[TokenLogprob]) -> list[Json]:
        spelled: list[Json] = chat_logprobs(tokens, self._token_bytes)["content"]
        return spelled


def _item(part: Part, status: str, text: str, content: list[Json]) -> Json:
    if part.kind == "call":
        return {
            "id": part.id,
            "type": "function_call",
            "status": status,
            "call_id": part.id.replace(_PREFIXES["call"], "call_", 1),
            "name": part.name,
            "arguments": text,
        }
    named = {"id": part.id, "status": status, "content": content}
    if part.kind == "thinking":
        return {**named, "type": "reasoning", "summary": []}
    return {**named, "type": "message", "role": "assistant"}


def _content(kind: PartKind, text: str, logprobs: list[Json]) -> Json:
    """The one part that an item's content consists of."""
    if kind == "thinking":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _of_item(kind: str, part: Part, item: Json) -> Json:
    return {"type": kind, "output_index": part.index, "item": item}


def _inside(kind: str, part: Part, said: Json) -> Json:
    """An event about what is inside of an item."""
    place = {"item_id": part.id, "output_index": part.index}
    content = {} if part.kind == "call" else {"content_index": 0}
    return {"type": kind, **place, **content, **said}
