"""Bodies that are not as they should be: refused in the API's own shape, never a failure."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_qwen3 import LLM
from mlx_qwen3.server import anthropic_messages, openai_responses
from tests.fakes import ends, says
from tests.server.services import PlayedService, served

SCHEMA = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
MESSAGES = {
    "model": "played",
    "max_tokens": 50,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "What time is it?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "clock", "input": {"zone": "UTC"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [], "is_error": False},
                {"type": "text", "text": "Well?"},
            ],
        },
    ],
    "tools": [{"name": "clock", "description": "d", "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 20},
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 5,
    "stop_sequences": ["END"],
    "metadata": {"user_id": "me"},
}
RESPONSES = {
    "model": "played",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": []},
        {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "12:00"},
    ],
    "tools": [{"type": "function", "name": "clock", "parameters": SCHEMA, "strict": True}],
    "tool_choice": "auto",
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 2,
    "max_output_tokens": 50,
    "temperature": 1.0,
    "seed": 1,
    "metadata": {"a": "b"},
}
COUNTED = {name: MESSAGES[name] for name in ("model", "messages", "system", "tools", "thinking")}
BODIES = {
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNTED,
    "/v1/responses": RESPONSES,
}
PATHS = sorted(BODIES)


@pytest.fixture(scope="module")
def there(demo: LLM) -> Iterator[httpx.Client]:
    apis = (anthropic_messages.routes, openai_responses.routes)
    with (
        served(PlayedService(demo, [[says("ok"), ends()]]), *apis) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def check(path: str, answer: httpx.Response) -> None:
    """Refused, in one line and in the API's shape; or answered."""
    if answer.status_code == 200:
        return
    assert 400 <= answer.status_code < 500, answer.text
    body = answer.json()
    if path.startswith("/v1/messages"):
        assert (body["type"], body["error"]["type"][-6:]) in (
            ("error", "_error"),
            ("error", "_large"),
        )
        assert body["request_id"] == answer.headers["request-id"]
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "\n" not in body["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_right_is_answered(there: httpx.Client, path: str) -> None:
    assert there.post(path, json=BODIES[path]).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"model": "played", "model": 1}',
        b'{"a": NaN}',
        b'{"max_tokens": 1e999}',
        b'{"max_tokens": ' + b"9" * 5000 + b"}",
        b'{"a": ' * 20_000,
        b"[" * 200_000,
        b'{"model": "\\ud800"}',
        b'{"tools": [' + b'{"input_schema": ' * 500 + b"1" + b"}" * 500 + b"]}",
    ],
    ids=range(14),
)
@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_body_is_refused(there: httpx.Client, path: str, data: bytes) -> None:
    answer = there.post(path, content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    check(path, answer)


@pytest.mark.parametrize("path", PATHS)
def test_other_media_are_refused(there: httpx.Client, path: str) -> None:
    answer = there.post(path, content=json.dumps(BODIES[path]))
    assert answer.status_code == 415
    check(path, answer)


@pytest.mark.parametrize("schema", [SCHEMA, {"$ref": "#"}, {"type": "nothing"}, {"type": 5}, {}])
@pytest.mark.parametrize("depth", [0, 60, 400])
def test_schemas_are_enforced_or_refused(there: httpx.Client, schema: Any, depth: int) -> None:
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    tool = {"name": "clock", "input_schema": schema, "strict": True}
    check("/v1/messages", there.post("/v1/messages", json={**MESSAGES, "tools": [tool]}))
    form = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    check("/v1/responses", there.post("/v1/responses", json={**RESPONSES, "text": form}))


# --- anything, anywhere

WORDS = ["type", "text", "user", "object", "auto", "function", "played", "\ud800", "<|im_end|>"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(WORDS), inner, max_size=3)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in a JSON value."""
    if not isinstance(value, dict | list):
        return
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(one, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, path: str) -> Any:
    """A good body with something else in one to three places, or less of it."""
    body: Any = copy.deepcopy(BODIES[path])
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(places(body)) or [("model",)]))
        holder = body
        for step in way:
            holder = holder[step]
        match draw(st.sampled_from(["set", "drop", "add"])):
            case "set":
                holder[last] = draw(JSON)
            case "drop":
                holder.pop(last, None) if isinstance(holder, dict) else holder.pop(last)
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = draw(JSON)
            case _:
                holder.append(draw(JSON))
    return body


@pytest.mark.parametrize("path", PATHS)
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_is_changed_is_answered_or_refused(
    there: httpx.Client, path: str, data: st.DataObject
) -> None:
    text = json.dumps(data.draw(mutated(path)))
    answer = there.post(path, content=text, headers={"Content-Type": "application/json"})
    check(path, answer)
