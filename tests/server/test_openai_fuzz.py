"""Bodies nobody would write: each is served or refused in OpenAI's shape, none makes us fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from mlx_qwen3 import LLM
from mlx_qwen3.server import openai_chat, openai_completions
from mlx_qwen3.server.body import Body, Limits
from mlx_qwen3.server.openai_chat import ChatBody
from mlx_qwen3.server.openai_completions import CompletionBody
from tests.fakes import ends, says
from tests.server.services import PlayedService

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
WORDS = ("text", "function", "user", "assistant", "tool", "json_schema", "required", "f")

texts = st.one_of(st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=8))
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.integers(-2, 20),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
keys = st.one_of(
    st.sampled_from(
        ["type", "role", "content", "name", "function", "schema", "properties", "$ref"]
    ),
    texts,
)
anything = st.recursive(
    atoms,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
schemas = st.recursive(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(TYPES),
            "enum": st.lists(atoms, max_size=3),
            "minimum": atoms,
            "minLength": atoms,
            "pattern": st.sampled_from(["a", "(", "^x+$", "[", "\\", "/"]),
            "$ref": st.sampled_from(["#", "#/$defs/a", "http://x/y"]),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {"type": st.sampled_from(("object", "array"))},
        optional={
            "properties": st.dictionaries(texts, inner, max_size=3),
            "items": inner,
            "anyOf": st.lists(inner, max_size=3),
            "required": st.lists(texts, max_size=2),
            "$defs": st.dictionaries(st.just("a"), inner),
            "additionalProperties": inner,
        },
    ),
    max_leaves=5,
)
functions = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["f", "get.it", "a-b"]),
        "parameters": st.one_of(schemas, schemas, anything),
    },
    optional={"strict": st.booleans(), "description": st.one_of(texts, anything)},
)
tools = st.lists(
    st.fixed_dictionaries({"type": st.just("function"), "function": functions}), max_size=2
)
text_part = st.fixed_dictionaries({"type": st.just("text"), "text": texts})
parts = st.lists(st.one_of(text_part, anything), max_size=2)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"])},
        optional={
            "content": st.one_of(texts, parts, anything),
            "tool_call_id": texts,
            "reasoning_content": texts,
            "tool_calls": anything,
        },
    ),
    max_size=4,
)
formats = st.one_of(
    anything,
    schemas.map(lambda one: {"type": "json_schema", "json_schema": {"name": "x", "schema": one}}),
)
LIKELY: dict[str, Any] = {
    "messages": messages,
    "tools": tools,
    "response_format": formats,
    "tool_choice": st.sampled_from(["none", "auto", "required", "f"]),
    "prompt": st.one_of(texts, st.lists(texts), st.lists(st.integers(-1, 2000), max_size=4)),
    "n": st.integers(-1, 3),
    "model": st.sampled_from(["played", "other"]),
}
VALID: dict[type[Body], dict[str, Any]] = {
    ChatBody: {"messages": [{"role": "user", "content": "Hi"}]},
    CompletionBody: {"prompt": "Hi"},
}


def bodies(kind: type[Body]) -> st.SearchStrategy[dict[str, Any]]:
    """A body that is right, with a few of its fields replaced by what comes."""
    names = st.sampled_from(sorted({*kind.model_fields, "unknown"}))
    field = names.flatmap(
        lambda name: st.tuples(st.just(name), st.one_of(LIKELY.get(name, anything), anything))
    )
    return st.lists(field, max_size=4).map(lambda fields: VALID[kind] | dict(fields))


@pytest.fixture(scope="module")
def client(demo: LLM) -> Iterator[TestClient]:
    """Both APIs over a service whose replies are played; requests are prepared in earnest."""
    service: Any = PlayedService(demo, [[says("Hi"), ends()]])
    routes = [
        route
        for api in (openai_chat.routes, openai_completions.routes)
        for route in api(service, Limits())
    ]
    with TestClient(Starlette(routes=routes)) as made:
        yield made


def check(client: TestClient, path: str, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = client.post(path, content=content, headers=headers)
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]


@EXAMPLES
@given(body=bodies(ChatBody))
@example(body={"messages": [{"role": "user", "content": "Hi"}], "stop": ["\u0000"]})
def test_chat_never_fails(client: TestClient, body: dict[str, Any]) -> None:
    check(client, "/v1/chat/completions", json.dumps(body).encode())


@EXAMPLES
@given(body=bodies(CompletionBody))
def test_completions_never_fail(client: TestClient, body: dict[str, Any]) -> None:
    check(client, "/v1/completions", json.dumps(body).encode())


@EXAMPLES
@given(
    tools=st.one_of(st.none(), tools),
    choice=st.one_of(st.none(), LIKELY["tool_choice"]),
    wanted=st.one_of(st.none(), formats),
    said=messages,
)
def test_tools_and_schemas_never_fail(
    client: TestClient, tools: Any, choice: Any, wanted: Any, said: Any
) -> None:
    body = {**VALID[ChatBody], "tools": tools, "tool_choice": choice, "response_format": wanted}
    check(client, "/v1/chat/completions", json.dumps(body).encode())
    check(client, "/v1/chat/completions", json.dumps({**body, "messages": said}).encode())


@EXAMPLES
@given(
    content=st.one_of(st.binary(max_size=60), anything.map(lambda one: json.dumps(one).encode()))
)
def test_other_bytes_never_fail(client: TestClient, content: bytes) -> None:
    check(client, "/v1/chat/completions", content)
