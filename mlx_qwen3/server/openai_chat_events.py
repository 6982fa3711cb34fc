"""Events of replies as chat/completions writes them: one object, or chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from mlx_qwen3.generation.output import Completion, Event, TokenLogprob
from mlx_qwen3.server.events import DONE, Chunks, sse
from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.openai_parts import (
    SYSTEM_FINGERPRINT,
    Calls,
    TokenBytes,
    chat_logprobs,
    completion_of,
    usage_of,
)
from mlx_qwen3.server.parts import AnswerTokens
from mlx_qwen3.server.replies import Replies

Json = dict[str, Any]


def chat_completion(
    model: str, replies: Sequence[Sequence[Event]], token_bytes: TokenBytes | None = None
) -> Json:
    """The whole object. replies: all events of each choice. token_bytes: None: no logprobs."""
    completions = [completion_of(events) for events in replies]
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": SYSTEM_FINGERPRINT,
        "choices": [_choice(index, events, token_bytes) for index, events in enumerate(replies)],
        "usage": usage_of(completions),
    }


def _choice(index: int, events: Sequence[Event], token_bytes: TokenBytes | None) -> Json:
    completion = completion_of(events)
    tokens = AnswerTokens()
    answer = [token for event in events for token in tokens.of(event)]
    return {
        "index": index,
        "message": _message(completion, events),
        "logprobs": None if token_bytes is None else chat_logprobs(answer, token_bytes),
        **_ending(completion),
    }


def _message(completion: Completion, events: Sequence[Event]) -> Json:
    calls = Calls()
    for event in events:
        calls.add(event)
    written = [
        {"id": call.id, "type": "function", "function": _function(call.name, call.arguments)}
        for call in calls.complete()
    ]
    message: Json = {
        "role": "assistant",
        "content": completion.text or (None if written else ""),
        "refusal": None,
    }
    if completion.thinking:
        message["reasoning_content"] = completion.thinking
    return {**message, "tool_calls": written} if written else message


def _function(name: str, arguments: str) -> Json:
    return {"name": name, "arguments": arguments}


def _ending(completion: Completion) -> Json:
    """Why it ended. warnings: this server's own, where something is not as it should be."""
    warnings = {"warnings": list(completion.warnings)} if completion.warnings else {}
    return {"finish_reason": completion.finish_reason, **warnings}


class ChatChunks:
    """The chunks of one streamed request, choices in company.

    token_bytes: None: no logprobs. usage: whether a last chunk tells the tokens of all.
    """

    def __init__(
        self, model: str, token_bytes: TokenBytes | None = None, *, usage: bool = False
    ) -> None:
        self._head = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }
        self._usage = usage
        self._token_bytes = token_bytes
        self._choices: dict[int, _ChoiceChunks] = {}
        self._ended: dict[int, Completion] = {}

    def of(self, index: int, event: Event) -> Iterator[Json]:
        """The chunks an event of this choice makes."""
        if index not in self._choices:
            self._choices[index] = _ChoiceChunks()
            yield self._chunk(index, {"role": "assistant", "content": ""})
        choice = self._choices[index]
        delta, tokens = choice.delta(event), choice.tokens.of(event)
        if delta:
            yield self._chunk(index, delta, tokens)
        if event.completion is not None:
            self._ended[index] = event.completion
            yield self._chunk(index, {}, (), _ending(event.completion))

    def end(self) -> Iterator[Json]:
        """The last chunk, if it was asked for."""
        if self._usage:
            usage = usage_of([self._ended[index] for index in sorted(self._ended)])
            yield {**self._head, "choices": [], "usage": usage}

    def _chunk(
        self,
        index: int,
        delta: Json,
        tokens: Sequence[TokenLogprob] = (),
        ending: Json | None = None,
    ) -> Json:
        logprobs = None
        if tokens and self._token_bytes is not None:
            logprobs = chat_logprobs(tokens, self._token_bytes)
        choice = {"index": index, "delta": delta, "logprobs": logprobs}
        usage = {"usage": None} if self._usage else {}
        ended = ending or {"finish_reason": None}
        return {**self._head, "choices": [{**choice, **ended}], **usage}


class _ChoiceChunks:
    """What the chunks of one choice depend on."""

    def __init__(self) -> None:
        self.tokens = AnswerTokens()
        self._calls = Calls()
        self._places: dict[str, int] = {}

    def delta(self, event: Event) -> Json:
        """What is new; {} for nothing."""
        if event.kind in _FIELDS:
            return {_FIELDS[event.kind]: event.text}
        found = self._calls.add(event)
        if found is None or event.call is None:
            return {}
        call, new = found
        place = self._places.setdefault(call.id, len(self._places))
        if not new:
            more = _more(place, event.call.arguments)
            return {"tool_calls": [more]} if event.call.arguments else {}
        function = _function(call.name, event.call.arguments)
        first = {"index": place, "id": call.id, "type": "function", "function": function}
        return {"tool_calls": [first]}


_FIELDS = {"thinking": "reasoning_content", "answer": "content"}


def _more(place: int, arguments: str) -> Json:
    return {"index": place, "function": {"arguments": arguments}}


async def write_chat(replies: Replies, *, logprobs: bool, usage: bool) -> Chunks:
    """The stream of a request that has begun."""
    token_bytes = replies.model.llm.tokenizer.token_bytes if logprobs else None
    chunks = ChatChunks(replies.model.name, token_bytes, usage=usage)
    async for index, event in replies.events():
        for chunk in chunks.of(index, event):
            yield sse(chunk)
    for chunk in chunks.end():
        yield sse(chunk)
    yield DONE
