"""Events of replies as completions writes them: one object, or chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from mlx_qwen3.generation.output import Completion, Event, TokenLogprob
from mlx_qwen3.server.events import DONE, Chunks, sse
from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.openai_parts import (
    SYSTEM_FINGERPRINT,
    completion_of,
    finite,
    usage_of,
)
from mlx_qwen3.server.parts import AnswerTokens
from mlx_qwen3.server.replies import Replies

Json = dict[str, Any]
# The prompt of every reply, where it is to be repeated.
Echo = Callable[[Replies], Sequence[str]]


def text_completion(
    replies: Replies, events: Sequence[Sequence[Event]], *, logprobs: bool, echo: Echo | None
) -> Json:
    """The whole object. events: all of each choice."""
    prompts = _prompts(replies, echo)
    completions = [completion_of(one) for one in events]
    choices = [
        TextChoice(index, prompts[index], logprobs=logprobs).whole(one)
        for index, one in enumerate(events)
    ]
    usage = usage_of(completions, len(replies.asks))
    return {**_head(replies.model.name), "choices": choices, "usage": usage}


async def write_completions(
    replies: Replies, *, logprobs: bool, echo: Echo | None, usage: bool
) -> Chunks:
    """The stream of a request that has begun."""
    head = _head(replies.model.name)
    nothing = {"usage": None} if usage else {}
    choices = [
        TextChoice(index, prompt, logprobs=logprobs)
        for index, prompt in enumerate(_prompts(replies, echo))
    ]
    ended: dict[int, Completion] = {}
    async for index, event in replies.events():
        if event.completion is not None:
            ended[index] = event.completion
        if (choice := choices[index].of(event)) is not None:
            yield sse({**head, "choices": [choice], **nothing})
    if usage:
        used = usage_of([ended[index] for index in sorted(ended)], len(replies.asks))
        yield sse({**head, "choices": [], "usage": used})
    yield DONE


class TextChoice:
    """One choice of completions. prompt: what is repeated before its text, "" for nothing."""

    def __init__(self, index: int, prompt: str = "", *, logprobs: bool = False) -> None:
        self._index = index
        self._lead = prompt
        self._logprobs = logprobs
        self._tokens = AnswerTokens()
        self._offset = 0

    def of(self, event: Event) -> Json | None:
        """What an event adds; None for nothing."""
        ended = None if event.completion is None else event.completion.finish_reason
        if not event.text and not self._lead and ended is None:
            return None
        text, self._lead = self._lead + event.text, ""
        return self._choice(text, self._tokens.of(event), ended)

    def whole(self, events: Sequence[Event]) -> Json:
        """The choice whose events these are."""
        completion = completion_of(events)
        tokens = [token for event in events for token in self._tokens.of(event)]
        return self._choice(self._lead + completion.text, tokens, completion.finish_reason)

    def _choice(self, text: str, tokens: Sequence[TokenLogprob], ended: str | None) -> Json:
        logprobs = self._spelled(tokens) if self._logprobs else None
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": ended}

    def _spelled(self, tokens: Sequence[TokenLogprob]) -> Json:
        offsets = []
        for one in tokens:
            offsets.append(self._offset)
            self._offset += len(one.token)
        return {
            "tokens": [one.token for one in tokens],
            "token_logprobs": [finite(one.logprob) for one in tokens],
            "top_logprobs": [_top(one) for one in tokens],
            "text_offset": offsets,
        }


def _top(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens, and the one that was drawn; None where only that was asked for."""
    if not token.top:
        return None
    likely = {text: finite(logprob) for _, text, logprob in token.top}
    return {**likely, token.token: finite(token.logprob)}


def _prompts(replies: Replies, echo: Echo | None) -> Sequence[str]:
    return [""] * len(replies.requests) if echo is None else echo(replies)


def _head(model: str) -> Json:
    return {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": SYSTEM_FINGERPRINT,
    }
