"""OpenAI's endpoints with OpenAI's own client and the demo model: what people will run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pydantic
import pytest

from mlx_qwen3 import LLM
from mlx_qwen3.server import openai_chat, openai_completions, openai_models
from tests.server.services import PlayedService, real, served

openai = pytest.importorskip("openai")

SUM = [{"role": "user", "content": "What is 27 + 58?"}]
ANSWER = "27 + 58 = 85."
ASK_TIME = [{"role": "user", "content": "What time is it in Tokyo?"}]
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_current_time",
        "description": "Get current time in a specific timezone",
        "parameters": {
            "type": "object",
            "properties": {"timezone": {"type": "string", "description": "IANA timezone name"}},
            "required": ["timezone"],
            "additionalProperties": False,
        },
    },
}
GREEDY: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 300}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of the demo model."""
    apis = (openai_chat.routes, openai_completions.routes, openai_models.routes)
    with served(real(), *apis) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{address}v1", api_key="none", max_retries=0) as made:
        yield made


# --- replies -----------------------------------------------------------------------------


def test_a_reply_with_its_thinking(client: Any, demo: LLM) -> None:
    done = client.chat.completions.create(messages=SUM, **GREEDY)
    own = demo.generate(SUM, temperature=0, max_tokens=300)
    message = done.choices[0].message
    assert (message.content, message.reasoning_content) == (ANSWER, own.thinking)
    assert (done.choices[0].finish_reason, done.model) == ("stop", "demo")
    assert done.usage.prompt_tokens == own.usage.prompt_tokens
    assert done.usage.completion_tokens == own.usage.completion_tokens
    assert done.usage.completion_tokens_details.reasoning_tokens == own.usage.thinking_tokens


def test_a_stream_says_the_same(client: Any) -> None:
    stream = client.chat.completions.create(
        messages=SUM, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    whole = client.chat.completions.create(messages=SUM, **GREEDY)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    thinking = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thinking == whole.choices[0].message.reasoning_content
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    used = chunks[-1].usage
    assert used.total_tokens == whole.usage.total_tokens
    assert used.prompt_tokens_details.cached_tokens < used.prompt_tokens


def test_asynchronously_and_side_by_side(address: str) -> None:
    async def ask(client: Any, a: int, b: int) -> str:
        text = ""
        messages = [{"role": "user", "content": f"What is {a} + {b}?"}]
        stream = await client.chat.completions.create(messages=messages, stream=True, **GREEDY)
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
        return text

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, 27, 58 + one) for one in range(3)))

    assert asyncio.run(run()) == [ANSWER, "27 + 59 = 86.", "27 + 60 = 87."]


def test_seeds_count_up(client: Any) -> None:
    options = {**GREEDY, "temperature": 9, "extra_body": {"top_k": 0}, "max_tokens": 12}
    several = client.chat.completions.create(messages=SUM, n=3, seed=3, top_p=1, **options)
    alone = [
        client.chat.completions.create(messages=SUM, seed=seed, top_p=1, **options)
        for seed in (3, 4, 5)
    ]
    said = [choice.message.model_dump() for choice in several.choices]
    assert said == [one.choices[0].message.model_dump() for one in alone]
    assert len({json.dumps(one) for one in said}) > 1
    assert several.usage.prompt_tokens == alone[0].usage.prompt_tokens
    tokens = [one.usage.completion_tokens for one in alone]
    assert several.usage.completion_tokens == sum(tokens)


def test_ways_to_think(client: Any) -> None:
    def thought(**options: Any) -> Any:
        options = {**GREEDY, **options}
        done = client.chat.completions.create(messages=SUM, **options)
        return done.usage.completion_tokens_details.reasoning_tokens

    off = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    assert thought(**off) == thought(reasoning_effort="none") == 0
    assert thought(reasoning_effort="low") == thought() > 50
    budget = {"extra_body": {"thinking_budget": 20}}
    assert 20 < thought(**budget) != thought()


def test_stops_and_limits(client: Any) -> None:
    stopped = client.chat.completions.create(messages=SUM, stop=[" =", "x"], **GREEDY)
    assert stopped.choices[0].message.content == "27 + 58"
    short = client.chat.completions.create(
        messages=SUM, model="demo", temperature=0, max_completion_tokens=5
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 5
    kept = client.chat.completions.create(
        messages=SUM, extra_body={"max_kv_size": 64, "kv_bits": 8}, **GREEDY
    )
    assert kept.choices[0].finish_reason in ("stop", "length")


def test_logprobs_are_those_of_the_answer(client: Any, demo: LLM) -> None:
    options = {"logprobs": True, "top_logprobs": 2, **GREEDY}
    whole = client.chat.completions.create(messages=SUM, **options).choices[0].logprobs.content
    assert "".join(token.token for token in whole) == ANSWER
    assert bytes(byte for token in whole for byte in token.bytes).decode() == ANSWER
    assert all(token.top_logprobs[0].logprob == token.logprob <= 0 for token in whole)
    chunks = client.chat.completions.create(messages=SUM, stream=True, **options)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    assert [token for part in parts if part for token in part.content] == whole


def test_a_bias_bans_a_token(client: Any, demo: LLM) -> None:
    banned = {str(demo.tokenizer.encode("8")[0]): -100}
    done = client.chat.completions.create(messages=SUM, logit_bias=banned, **GREEDY)
    message = done.choices[0].message
    assert "8" not in (message.content or "") + message.reasoning_content


# --- tools -------------------------------------------------------------------------------


def test_a_tool_is_called_and_its_result_read(client: Any) -> None:
    options = {"tools": [CLOCK], **GREEDY}
    asked = client.chat.completions.create(messages=ASK_TIME, **options).choices[0]
    assert asked.finish_reason == "tool_calls"
    (call,) = asked.message.tool_calls
    assert call.function.name == "get_current_time"
    assert json.loads(call.function.arguments) == {"timezone": "Asia/Tokyo"}
    result = {"timezone": "Asia/Tokyo", "datetime": "2025-03-04T15:30:00+09:00", "is_dst": False}
    tool = {"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)}
    answer = client.chat.completions.create(messages=[*ASK_TIME, asked.message, tool], **options)
    assert "15:30" in answer.choices[0].message.content


def test_a_call_streams_as_it_is_written(client: Any) -> None:
    options = {"tools": [CLOCK], **GREEDY}
    with client.chat.completions.stream(messages=ASK_TIME, **options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.delta") > 2
    (call,) = final.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"timezone": "Asia/Tokyo"}
    whole = client.chat.completions.create(messages=ASK_TIME, **options).choices[0].message
    assert call.function.arguments == whole.tool_calls[0].function.arguments


def test_calls_may_be_demanded_and_forbidden(client: Any) -> None:
    options = {"tools": [CLOCK], **GREEDY}
    named = {"type": "function", "function": {"name": "get_current_time"}}
    for choice in ("required", named):
        done = client.chat.completions.create(messages=SUM, tool_choice=choice, **options)
        assert done.choices[0].finish_reason == "tool_calls"
        assert set(json.loads(done.choices[0].message.tool_calls[0].function.arguments)) == {
            "timezone"
        }
    none = client.chat.completions.create(messages=ASK_TIME, tool_choice="none", **options)
    assert none.choices[0].message.tool_calls is None


def test_one_call_at_most(client: Any) -> None:
    both = [{"role": "user", "content": "What time is it in Tokyo and in Paris?"}]
    options = {"tools": [CLOCK], **GREEDY}
    two = client.chat.completions.create(messages=both, **options).choices[0]
    assert len(two.message.tool_calls) == 2
    one = client.chat.completions.create(messages=both, parallel_tool_calls=False, **options)
    assert len(one.choices[0].message.tool_calls) == 1
    assert one.choices[0].finish_reason == "tool_calls"


# --- answers of a form -------------------------------------------------------------------


class Place(pydantic.BaseModel):
    city: Literal["Paris", "Tokyo"]
    capital: bool


class GetTime(pydantic.BaseModel):
    """Get current time in a specific timezone"""

    timezone: Literal["Asia/Tokyo", "Europe/Paris"]


def test_an_answer_is_of_its_class(client: Any) -> None:
    options = {"messages": SUM, "response_format": Place, **GREEDY}
    done = client.chat.completions.parse(**options)
    assert isinstance(done.choices[0].message.parsed, Place)
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == done.choices[0].message.parsed


def test_a_strict_tool_is_of_its_class(client: Any) -> None:
    tool = openai.pydantic_function_tool(GetTime, name="get_current_time")
    options = {"tools": [tool], "tool_choice": "required", **GREEDY}
    done = client.chat.completions.parse(messages=ASK_TIME, **options)
    arguments = done.choices[0].message.tool_calls[0].function.parsed_arguments
    assert isinstance(arguments, GetTime)


def test_any_object(client: Any) -> None:
    done = client.chat.completions.create(
        messages=SUM, response_format={"type": "json_object"}, reasoning_effort="none", **GREEDY
    )
    text = done.choices[0].message.content
    assert text.startswith("{")
    if done.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_that_cannot_be_enforced_is_refused(client: Any) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "no", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="schema cannot be enforced") as caught:
        client.chat.completions.create(messages=SUM, response_format=schema, **GREEDY)
    assert caught.value.code == "invalid_schema"


# --- completions -------------------------------------------------------------------------


def test_texts_go_on(client: Any, demo: LLM) -> None:
    token_ids = demo.tokenizer.encode("one two")
    own = demo.generate("one two", raw=True, temperature=0, max_tokens=16).text
    options = {"model": "demo", "temperature": 0}
    for prompt in ("one two", ["one two"], token_ids, [token_ids]):
        (choice,) = client.completions.create(prompt=prompt, **options).choices
        assert (choice.text, choice.finish_reason) == (own, "length")
    several = client.completions.create(prompt=["one two", "x"], n=2, echo=True, **options)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text.startswith("one two") for choice in several.choices] == [True] * 2 + [
        False
    ] * 2
    assert several.choices[0].text == "one two" + own
    tokens = len(token_ids) + len(demo.tokenizer.encode("x"))
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (tokens, 64)


def test_completions_stream(client: Any) -> None:
    options = {"model": "demo", "temperature": 0, "max_tokens": 6, "logprobs": 2}
    stream = client.completions.create(
        prompt="one two", stream=True, stream_options={"include_usage": True}, **options
    )
    *chunks, last = list(stream)
    choices = [chunk.choices[0] for chunk in chunks]
    whole = client.completions.create(prompt="one two", **options)
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    logprobs = whole.choices[0].logprobs
    assert "".join(logprobs.tokens) == whole.choices[0].text
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    pairs = zip(logprobs.tokens, logprobs.top_logprobs, strict=True)
    assert [top[token] for token, top in pairs] == logprobs.token_logprobs
    streamed = [choice.logprobs for choice in choices]
    assert [token for one in streamed for token in one.tokens] == logprobs.tokens
    assert [place for one in streamed for place in one.text_offset] == logprobs.text_offset
    assert (choices[-1].finish_reason, last.usage.completion_tokens) == ("length", 6)
    del options["logprobs"]
    echoed = client.completions.create(prompt="one two", echo=True, stream=True, **options)
    assert "".join(one.choices[0].text for one in echoed) == "one two" + whole.choices[0].text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["x", 1]}, "prompt[0]"),
        ({"prompt": [[1, "x"]]}, "prompt[0][1]"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [10**6]}, None),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "thinking_budget": 5}, "thinking_budget"),
        ({}, "prompt"),
    ],
    ids=str,
)
def test_completions_that_cannot_be_had(address: str, fields: Any, param: str | None) -> None:
    response = httpx.post(f"{address}v1/completions", json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


# --- models, and errors ------------------------------------------------------------------


def test_models_are_listed(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.thinking, model.context_length) == ("demo", "hybrid", 4096)
    assert client.models.retrieve("demo") == model
    with pytest.raises(openai.NotFoundError, match="no model 'gpt' here; on offer: demo") as caught:
        client.models.retrieve("gpt")
    assert caught.value.code == "model_not_found"


def test_what_is_not_known_yet_is_not_listed(demo: LLM) -> None:
    with served(PlayedService(demo, [[]]), openai_models.routes) as address:
        first, second = httpx.get(f"{address}v1/models").json()["data"]
    assert (first["id"], first["context_length"]) == ("played", 4096)
    assert second["id"] == "other"
    assert not {"thinking", "context_length"} & set(second)


def test_errors_have_their_classes(client: Any) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-5", messages=SUM)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unknown:
        create(messages=SUM, **GREEDY, extra_body={"guided_regex": "x"})
    assert (unknown.value.param, unknown.value.code) == ("guided_regex", "unknown_parameter")
    with pytest.raises(openai.BadRequestError) as long:
        create(messages=[{"role": "user", "content": "word " * 5000}], **GREEDY)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="logit_bias names token 999999999"):
        create(messages=SUM, logit_bias={"999999999": 1}, **GREEDY)


def test_the_default_model_needs_no_name(address: str) -> None:
    body = {"messages": SUM, "temperature": 0}
    response = httpx.post(f"{address}v1/chat/completions", json=body, timeout=60)
    assert response.json()["choices"][0]["message"]["content"] == ANSWER
    assert response.json()["model"] == "demo"
