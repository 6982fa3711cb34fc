"""Bodies: what is taken, and how the one thing that is wrong with them is named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from mlx_qwen3.server.body import Body, Limits, Measure, counted, parse_body, weighed
from mlx_qwen3.server.problems import Problem


class Part(Body):
    type: Literal["text"]
    text: str


class User(Body):
    role: Literal["user"]
    content: str | list[Part]


class Tool(Body):
    role: Literal["tool"]
    content: str


class Asked(Body):
    INSTEAD: ClassVar = {"suffix": "put it into the prompt"}

    messages: list[Annotated[User | Tool, Field(discriminator="role")]]
    n: int | None = Field(None, ge=1)
    temperature: float | None = None
    plan: dict[str, Any] | None = None

    def measures(self) -> Iterable[Measure]:
        yield from counted("messages", self.messages, "messages")
        yield from weighed("plan", self.plan)


USER = {"role": "user", "content": "Hi"}


def parse(limits: Limits | None = None, **body: Any) -> Asked:
    return parse_body(json.dumps(body).encode(), Asked, limits or Limits())


def refused(data: bytes | None = None, limits: Limits | None = None, **body: Any) -> Problem:
    data = json.dumps(body).encode() if data is None else data
    with pytest.raises(Problem) as caught:
        parse_body(data, Asked, limits or Limits())
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    return caught.value


def test_a_body_is_read() -> None:
    body = parse(messages=[USER, {"role": "tool", "content": "4"}], temperature=1, n=None)
    assert isinstance(body.messages[0], User)
    assert isinstance(body.messages[1], Tool)
    assert (body.temperature, body.n) == (1.0, None)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "messages", "messages is missing"),
        ({"messages": [USER], "top_q": 1}, "top_q", "top_q is not supported"),
        (
            {"messages": [USER], "suffix": "x"},
            "suffix",
            "suffix is not supported; put it into the prompt",
        ),
        ({"messages": [USER], "n": 0}, "n", "n is 0; expected greater than or equal to 1"),
        ({"messages": [USER], "n": True}, "n", "n is true; expected a whole number"),
        ({"messages": [USER], "n": "two"}, "n", "n is a text; expected a whole number"),
        ({"messages": [USER], "n": 2.5}, "n", "n is 2.5; expected a whole number"),
        ({"messages": "Hi"}, "messages", "messages is a text; expected a list"),
        ({"messages": [7]}, "messages[0]", "messages[0] is 7; expected an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
        (
            {"messages": [USER, {"role": "king", "content": "x"}]},
            "messages[1].role",
            "messages[1].role is \"king\"; expected 'user', 'tool'",
        ),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "messages[0].role is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "messages[0].content[0].type is \"image_url\"; expected 'text'",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages[0].content",
            "messages[0].content is 5; expected a text or a list",
        ),
        (
            {"messages": [{**USER, "weight": 1}]},
            "messages[0].weight",
            "messages[0].weight is not supported",
        ),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, message: str) -> None:
    problem = refused(**body)
    assert (problem.param, problem.message) == (param, message)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"messages"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN, "messages": []}',
        b'{"temperature": 1e999, "messages": []}',
        b'{"plan": {"a": 1e999}, "messages": []}',
        b'{"n": ' + b"9" * 5000 + b'0.5, "messages": []}',
        b"[" * 100_000,
        b'{"plan": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}",
    ],
    ids=range(13),
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    refused(data)


def test_texts_of_the_client_are_not_repeated() -> None:
    problem = refused(messages=[USER], n="the secret of the user")
    assert "secret" not in problem.message


def test_limits_hold() -> None:
    assert refused(limits=Limits(messages=2), messages=[USER] * 3).message == (
        "messages: 3 are too many; this server takes at most 2"
    )
    parse(limits=Limits(messages=2), messages=[USER] * 2)
    plan = {"a": "é" * 10}
    parse(limits=Limits(schema_bytes=28), messages=[USER], plan=plan)
    assert refused(limits=Limits(schema_bytes=27), messages=[USER], plan=plan).param == "plan"


def test_names_of_fields_stay_in_one_line() -> None:
    assert "a\\nb is not supported" in refused(messages=[USER], **{"a\nb": 1}).message
    assert len(refused(messages=[USER], **{"a" * 999: 1}).message) < 99
