"""Requests of every kind, good and bad, as apps and agents send them side by side."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
ZONE = {"type": "object", "properties": {"timezone": {"type": "string"}}, "required": ["timezone"]}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Tokyo"]}, "sum": {"type": "integer"}},
    "required": ["city", "sum"],
    "additionalProperties": False,
}
CLOCK = {
    "name": "get_current_time",
    "description": "Get current time in a specific timezone",
    "parameters": ZONE,
}
TEXT = "The quick brown fox jumps over the lazy dog, again and again and again. "


@dataclass(frozen=True)
class Question:
    """A body that is served. Its answer is always the same: it is greedy, or has a seed."""

    path: str
    body: Json

    def streamed(self) -> Json:
        """The body that asks for a stream, with everything a whole answer holds."""
        usage = {"stream_options": {"include_usage": True}} if "completions" in self.path else {}
        return {**self.body, "stream": True, **usage}


@dataclass(frozen=True)
class Mistake:
    """Something that is refused."""

    path: str
    content: bytes
    media: str = "application/json"
    method: str = "POST"


def _says(rng: random.Random) -> str:
    a, b = rng.randrange(1000), rng.randrange(1000)
    return rng.choice(
        [
            f"What is {a} + {b}?",
            f"What is {a + b} - {b}?",
            "Hello!",
            f"What time is it in {rng.choice(['Tokyo', 'Paris', 'Oslo'])}?",
            f"Repeat after me: {TEXT * rng.randrange(1, 8)}",
            f"Who was number {a}?",
        ]
    )


def _chat(rng: random.Random) -> Json:
    turns = [{"role": "user", "content": _says(rng)}]
    if rng.random() < 0.3:
        turns = [*turns, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "?"}]
    if rng.random() < 0.3:
        turns = [{"role": "system", "content": "Be brief. " + TEXT * rng.randrange(3)}, *turns]
    options = rng.choice(_CHAT_OPTIONS)(rng)
    return {"messages": turns, "max_tokens": rng.randrange(1, 70), **_drawn(rng), **options}


def _drawn(rng: random.Random) -> Json:
    """Greedy, or with a seed."""
    if rng.random() < 0.4:
        return {"temperature": 0}
    return {"temperature": 1.0, "seed": rng.randrange(2**32), "top_p": 0.9}


_CHAT_OPTIONS: tuple[Callable[[random.Random], Json], ...] = (
    lambda rng: {},
    lambda rng: {"chat_template_kwargs": {"enable_thinking": False}},
    lambda rng: {"thinking_budget": rng.randrange(30), "max_tokens": 100},
    lambda rng: {"tools": [{"type": "function", "function": CLOCK}], "max_tokens": 120},
    lambda rng: {
        "tools": [{"type": "function", "function": {**CLOCK, "strict": True}}],
        "tool_choice": "required",
        "max_tokens": 120,
    },
    lambda rng: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}},
        "reasoning_effort": "none",
    },
    lambda rng: {"logprobs": True, "top_logprobs": rng.randrange(5)},
    lambda rng: {"n": 2},
    lambda rng: {"stop": ["8", "tiny"]},
    lambda rng: {"presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {"40": -5}},
    lambda rng: {"max_kv_size": 64},
    lambda rng: {"kv_bits": 8},
)


def _completion(rng: random.Random) -> Json:
    options = rng.choice(
        [{}, {"logprobs": 3}, {"n": 2}, {"echo": True}, {"stop": "e"}, {"repetition_penalty": 1.2}]
    )
    text = TEXT * rng.randrange(1, 6)
    prompt: Any = rng.choice([text, [text, "one two"], [40, 41, 42, 43]])
    return {"prompt": prompt, "max_tokens": rng.randrange(1, 40), **_drawn(rng), **options}


def _message(rng: random.Random) -> Json:
    tool = {"name": "get_current_time", "description": "The time", "input_schema": ZONE}
    options = rng.choice(
        [
            {},
            {"system": "Be brief."},
            {"thinking": {"type": "enabled", "budget_tokens": rng.randrange(1, 30)}},
            {"thinking": {"type": "disabled"}, "stop_sequences": ["8", "tiny"]},
            {"tools": [tool], "tool_choice": {"type": "auto"}},
            {"tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 120},
        ]
    )
    turns = [{"role": "user", "content": _says(rng)}]
    return {"messages": turns, "max_tokens": rng.randrange(1, 70), "temperature": 0.0, **options}


def _response(rng: random.Random) -> Json:
    tool = {"type": "function", "strict": True, **CLOCK}
    options = rng.choice(
        [
            {},
            {"instructions": "Be brief."},
            {"tools": [tool], "max_output_tokens": 120},
            {"text": {"format": {"type": "json_schema", "name": "c", "schema": CITY}}},
            {"reasoning": {"effort": "low"}},
            {"thinking_budget": rng.randrange(30)},
        ]
    )
    drawn = _drawn(rng)
    return {"input": _says(rng), "max_output_tokens": rng.randrange(1, 70), **drawn, **options}


_BODIES: dict[str, Callable[[random.Random], Json]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completion,
    "/v1/messages": _message,
    "/v1/responses": _response,
}
_SHARES = (4, 2, 2, 2)


def questions(rng: random.Random, count: int) -> list[Question]:
    """Different ones, of all four APIs."""
    paths = rng.choices(tuple(_BODIES), _SHARES, k=count)
    return [Question(path, {"model": "demo", **_BODIES[path](rng)}) for path in paths]


def mistake(rng: random.Random, good: Question) -> Mistake:
    """A question with something wrong about it."""
    content = json.dumps(good.body).encode()
    return rng.choice(_MISTAKES)(rng, good, content)


def _changed(**fields: Any) -> Callable[[random.Random, Question, bytes], Mistake]:
    return lambda rng, good, content: Mistake(
        good.path, json.dumps({**good.body, **fields}).encode()
    )


_MISTAKES: tuple[Callable[[random.Random, Question, bytes], Mistake], ...] = (
    lambda rng, good, content: Mistake(good.path, content[: rng.randrange(len(content))]),
    lambda rng, good, content: Mistake(good.path, rng.randbytes(rng.randrange(1, 300))),
    lambda rng, good, content: Mistake(good.path, b"[" * 50_000),
    lambda rng, good, content: Mistake(good.path, content, media="text/plain"),
    lambda rng, good, content: Mistake(good.path, b"", method="GET"),
    lambda rng, good, content: Mistake(good.path + "/x", content),
    _changed(model="none-of-ours"),
    _changed(no_such_field=1),
    _changed(temperature="warm"),
    _changed(temperature=-1.0),
    _changed(max_tokens=0, max_output_tokens=0),
    _changed(messages=[], prompt=[], input=[]),
    _changed(tools=[{"type": "function"}]),
    _changed(stream="yes"),
)
