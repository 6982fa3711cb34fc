"""The items of a response, and the events in which they grow: what OpenAI calls each part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_qwen3.generation.output import TokenLogprob
from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.parts import Change, Part, PartKind

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


def item(part: Part) -> Json:
    """A part that has ended, as an item."""
    return _item(part, "completed" if part.complete else "incomplete", part.text, [_content(part)])


def events(change: Change) -> list[Json]:
    """The events of a change, without their numbers."""
    return _TOLD[change.verb](change)


def logprob(one: TokenLogprob) -> Json:
    """A token's probability, and those of the most likely ones."""
    top = [_token(text, value) for _, text, value in one.top]
    return {**_token(one.token, one.logprob), "top_logprobs": top}


def _token(text: str, value: float) -> Json:
    return {"token": text, "bytes": list(text.encode()), "logprob": value}


def _item(part: Part, status: str, text: str, content: Sequence[Json]) -> Json:
    if part.kind == "call":
        return {
            "id": part.id,
            "type": "function_call",
            "status": status,
            "call_id": part.id.replace(_PREFIXES["call"], "call_", 1),
            "name": part.name,
            "arguments": text,
        }
    named = {"id": part.id, "status": status, "content": list(content)}
    if part.kind == "thinking":
        return {**named, "type": "reasoning", "summary": []}
    return {**named, "type": "message", "role": "assistant"}


def _content(part: Part, text: str | None = None, logprobs: Sequence[TokenLogprob] = ()) -> Json:
    """The one content part of an item; of a text, or of all of it."""
    if text is None:
        text, logprobs = part.text, part.logprobs
    if part.kind == "thinking":
        return {"type": "reasoning_text", "text": text}
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": [logprob(one) for one in logprobs],
    }


def _begun(change: Change) -> list[Json]:
    part = change.part  # it may have grown by now, and yet begins empty
    added = _of_item("response.output_item.added", part, _item(part, "in_progress", "", []))
    if part.kind == "call":
        return [added]
    return [added, _within("response.content_part.added", part, part=_content(part, ""))]


def _grown(change: Change) -> list[Json]:
    part = change.part
    return [_within(f"{_EVENTS[part.kind][0]}.delta", part, change.logprobs, delta=change.text)]


def _ended(change: Change) -> list[Json]:
    part = change.part
    name, field = _EVENTS[part.kind]
    said = [_within(f"{name}.done", part, part.logprobs, **{field: part.text})]
    if part.kind != "call":
        said.append(_within("response.content_part.done", part, part=_content(part)))
    return [*said, _of_item("response.output_item.done", part, item(part))]


_TOLD = {"begin": _begun, "grow": _grown, "end": _ended}


def _of_item(kind: str, part: Part, of: Json) -> Json:
    return {"type": kind, "output_index": part.index, "item": of}


def _within(kind: str, where: Part, logprobs: Sequence[TokenLogprob] = (), **fields: Any) -> Json:
    """An event about what is inside of an item."""
    place: Json = {"item_id": where.id, "output_index": where.index}
    if where.kind != "call":
        place["content_index"] = 0
    if kind.startswith(_EVENTS["answer"][0]):
        place["logprobs"] = [logprob(one) for one in logprobs]
    return {"type": kind, **place, **fields}
