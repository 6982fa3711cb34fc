"""What an API's answer comes to, whole or streamed: two that say the same are equal.

Reading a stream also checks its form; an AssertionError says what is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]
Outcome = Any
Frame = tuple[str | None, Any]  # the event's name, where there is one, and its data
_FRAME = re.compile(rb"(?:event: ([a-z_.]+)\n)?data: ([^\n]+)")


def frames(data: bytes) -> list[Frame]:
    """Server-sent events, each complete, comments left out; "[DONE]" is a string."""
    *parts, rest = data.split(b"\n\n")
    assert rest == b"", f"the stream ends amid an event: {rest[-80:]!r}"
    found: list[Frame] = []
    for part in parts:
        if part.startswith(b": "):
            continue
        match = _FRAME.fullmatch(part)
        assert match is not None, f"no event: {part[:80]!r}"
        name = match[1].decode() if match[1] else None
        found.append((name, match[2].decode() if match[2] == b"[DONE]" else json.loads(match[2])))
    return found


def undone(found: Sequence[Frame]) -> list[Json]:
    """OpenAI's chunks: without names, and with one [DONE], behind them."""
    assert [data for _, data in found].index("[DONE]") == len(found) - 1
    assert {name for name, _ in found} == {None}
    return [data for _, data in found[:-1]]


# --- chat/completions and completions


def whole_chat(body: Json) -> Outcome:
    choices = [_chat_choice(one["message"], one) for one in body["choices"]]
    return choices, body["usage"]["completion_tokens"]


def _chat_choice(message: Json, choice: Json) -> Outcome:
    logprobs = (choice.get("logprobs") or {}).get("content") or []
    return {
        "content": message.get("content") or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": [
            (call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ],
        "finish": choice["finish_reason"],
        "tokens": [one["token"] for one in logprobs],
    }


def streamed_chat(found: Sequence[Frame]) -> Outcome:
    *chunks, last = undone(found)
    assert last["choices"] == []
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1
    count = 1 + max(chunk["choices"][0]["index"] for chunk in chunks)
    choices = [_joined_chat(_of_choice(chunks, index)) for index in range(count)]
    return choices, last["usage"]["completion_tokens"]


def _of_choice(chunks: Sequence[Json], index: int) -> list[Json]:
    """The chunks of a choice, the last of which says why it ended."""
    mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
    assert [one["finish_reason"] is not None for one in mine].index(True) == len(mine) - 1
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    return mine


def _joined_chat(mine: Sequence[Json]) -> Outcome:
    assert mine[0]["delta"]["role"] == "assistant"
    assert not any("role" in one["delta"] for one in mine[1:])
    message: Json = {"content": "", "reasoning_content": "", "tool_calls": []}
    tokens: list[Json] = []
    for one in mine:
        for name in ("content", "reasoning_content"):
            message[name] += one["delta"].get(name) or ""
        for call in one["delta"].get("tool_calls") or ():
            _join_call(message["tool_calls"], call)
        tokens += (one["logprobs"] or {}).get("content") or []
    return _chat_choice(message, {**mine[-1], "logprobs": {"content": tokens}})


def _join_call(calls: list[Json], call: Json) -> None:
    if call["index"] == len(calls):
        calls.append({"function": dict(call["function"])})
    else:
        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]


def whole_completion(body: Json) -> Outcome:
    choices = [
        (one["text"], one["finish_reason"], (one["logprobs"] or {}).get("tokens", []))
        for one in body["choices"]
    ]
    return choices, body["usage"]["completion_tokens"]


def streamed_completion(found: Sequence[Frame]) -> Outcome:
    *chunks, last = undone(found)
    assert last["choices"] == []
    count = 1 + max(chunk["choices"][0]["index"] for chunk in chunks)
    choices = []
    for index in range(count):
        mine = _of_choice(chunks, index)
        tokens = [token for one in mine for token in (one["logprobs"] or {}).get("tokens", [])]
        choices.append(("".join(one["text"] for one in mine), mine[-1]["finish_reason"], tokens))
    return choices, last["usage"]["completion_tokens"]


# --- messages


def whole_message(body: Json) -> Outcome:
    blocks = [
        (one["type"], one["input"] if one["type"] == "tool_use" else one[one["type"]])
        for one in body["content"]
    ]
    return blocks, body["stop_reason"], body["stop_sequence"], body["usage"]["output_tokens"]


_TAILS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def streamed_message(found: Sequence[Frame]) -> Outcome:
    """message_start, blocks one after the other, message_delta, message_stop."""
    assert all(name == data["type"] for name, data in found)
    events = [data for _, data in found if data["type"] != "ping"]
    start, *inner, delta, stop = events
    ends = [start["type"], delta["type"], stop["type"]]
    assert ends == ["message_start", "message_delta", "message_stop"]
    blocks: list[Json] = []
    is_open = False
    for event in inner:
        kind = event["type"].removeprefix("content_block_")
        assert is_open == (kind != "start")
        assert event["index"] == len(blocks) - (kind != "start")
        if kind == "start":
            blocks.append({**event["content_block"], "partial_json": ""})
        elif kind == "delta" and event["delta"]["type"] in _TAILS:
            tail = _TAILS[event["delta"]["type"]]
            blocks[-1][tail] += event["delta"][tail]
        is_open = kind != "stop"
    assert not is_open
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["partial_json"] or "{}")
    return whole_message({"content": blocks, **delta["delta"], "usage": delta["usage"]})


# --- responses


def whole_response(body: Json) -> Outcome:
    items = [_item(one) for one in body["output"]]
    return items, body["status"], body["usage"]["output_tokens"]


def _item(item: Json) -> Outcome:
    if item["type"] == "function_call":
        return item["type"], item["name"], item["arguments"]
    return item["type"], [part["text"] for part in item.get("content") or ()]


def streamed_response(found: Sequence[Frame]) -> Outcome:
    """Events count up; the last one holds what those before it added up to."""
    assert all(name == data["type"] for name, data in found)
    events = [data for _, data in found]
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    assert [one["type"] for one in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last["type"] == f"response.{last['response']['status']}"
    done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]
    deltas = "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
    texts = [part["text"] for one in done if one["type"] == "message" for part in one["content"]]
    assert deltas == "".join(texts)
    return whole_response(last["response"])


WHOLE: dict[str, Callable[[Json], Outcome]] = {
    "/v1/chat/completions": whole_chat,
    "/v1/completions": whole_completion,
    "/v1/messages": whole_message,
    "/v1/responses": whole_response,
}
STREAMED: dict[str, Callable[[Sequence[Frame]], Outcome]] = {
    "/v1/chat/completions": streamed_chat,
    "/v1/completions": streamed_completion,
    "/v1/messages": streamed_message,
    "/v1/responses": streamed_response,
}


def check_refusal(path: str, status: int, body: Json) -> None:
    """An error in the API's own shape, in one line."""
    assert 400 <= status < 500
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "\n" not in body["error"]["message"]
