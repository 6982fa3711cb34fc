"""OpenAI's own client, and its agents SDK, against a real server with the demo model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)

from mlx_qwen3 import LLM
from mlx_qwen3.errors import BusyError, EngineError
from mlx_qwen3.generation.output import Event
from mlx_qwen3.server.openai_responses import routes
from tests.fakes import ends, says, thinks
from tests.server.services import PlayedService, real, served

SUM = "What is 27 + 58?"
TIME = "What time is it in Tokyo?"
CLOCK: Any = {
    "type": "function",
    "name": "get_current_time",
    "description": "Get current time in a specific timezone",
    "parameters": {
        "type": "object",
        "properties": {"timezone": {"type": "string", "description": "IANA timezone name"}},
        "required": ["timezone"],
        "additionalProperties": False,
    },
    "strict": True,
}
NOON = '{"timezone": "Asia/Tokyo", "datetime": "2025-01-01T12:34:00+09:00"}'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(real(), routes) as address:
        yield f"{address}v1"


@pytest.fixture(scope="module")
def there(url: str) -> Iterator[openai.OpenAI]:
    with client(url) as opened:
        yield opened


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def asked(prompt: Any = SUM, **options: Any) -> dict[str, Any]:
    """Arguments of `responses.create`."""
    return {"model": "demo", "input": prompt, "temperature": 0, **options}


def content(response: Response) -> ResponseOutputText:
    """The answer of a response."""
    message = response.output[-1]
    assert isinstance(message, ResponseOutputMessage)
    [part] = message.content
    assert isinstance(part, ResponseOutputText)
    return part


# --- whole


def test_a_response(there: openai.OpenAI) -> None:
    response = there.responses.create(**asked(instructions="Be brief.", metadata={"a": "b"}))
    reasoning, message = response.output
    assert isinstance(reasoning, ResponseReasoningItem)
    assert reasoning.content is not None
    assert "carry" in reasoning.content[0].text
    assert (message.type, response.output_text) == ("message", "27 + 58 = 85.")
    assert (response.status, response.model, response.error) == ("completed", "demo", None)
    assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
    usage = response.usage
    assert usage is not None
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_effort_none_does_not_think(there: openai.OpenAI) -> None:
    response = there.responses.create(**asked(reasoning={"effort": "none"}))
    assert [item.type for item in response.output] == ["message"]
    assert response.reasoning is not None
    assert response.reasoning.effort == "none"


def test_the_default_model(there: openai.OpenAI) -> None:
    response = there.responses.create(input="Hello!", reasoning={"effort": "none"})
    assert response.model == "demo"


def test_a_function_is_called_and_its_output_told(there: openai.OpenAI) -> None:
    first = there.responses.create(**asked(TIME, tools=[CLOCK], store=False))
    call = first.output[-1]
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, json.loads(call.arguments)) == (
        "get_current_time",
        {"timezone": "Asia/Tokyo"},
    )
    said: list[Any] = [{"role": "user", "content": TIME}, *first.output]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": NOON}
    second = there.responses.create(**asked([*said, output], tools=[CLOCK]))
    assert second.output_text == "It is 12:34 in Tokyo."


def test_one_call_where_no_more_are_wanted(there: openai.OpenAI) -> None:
    response = there.responses.create(
        **asked("Hello!", tools=[CLOCK], tool_choice="required", parallel_tool_calls=False)
    )
    calls = [item for item in response.output if item.type == "function_call"]
    assert len(calls) == 1
    assert response.parallel_tool_calls is False


def test_an_answer_of_a_form(there: openai.OpenAI) -> None:
    class Right(pydantic.BaseModel):
        verdict: Literal["yes", "no"]

    response = there.responses.parse(**asked("Is 27 + 58 = 85?", text_format=Right))
    assert response.output_parsed is not None
    assert response.output_parsed.verdict in ("yes", "no")


@pytest.mark.parametrize("streams", [False, True])
def test_the_end_of_the_tokens(there: openai.OpenAI, streams: bool) -> None:
    arguments = asked(max_output_tokens=3)
    if streams:
        with there.responses.create(**arguments, stream=True) as events:
            last = list(events)[-1]
        assert last.type == "response.incomplete"
        response: Response = last.response
    else:
        response = there.responses.create(**arguments)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert getattr(response.output[-1], "status", None) == "incomplete"


@pytest.mark.parametrize("streams", [False, True])
def test_logprobs_are_those_of_the_answer(there: openai.OpenAI, streams: bool) -> None:
    arguments = asked(include=["message.output_text.logprobs"], top_logprobs=2)
    if streams:
        with there.responses.stream(**arguments) as stream:
            deltas = [one for one in stream if one.type == "response.output_text.delta"]
            part = content(stream.get_final_response())
        tokens = [token.token for delta in deltas for token in delta.logprobs]
        assert tokens == [token.token for token in part.logprobs or ()]
    else:
        part = content(there.responses.create(**arguments))
    assert part.logprobs is not None
    assert "".join(token.token for token in part.logprobs) == part.text
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


# --- streams


def test_a_stream_is_the_response(there: openai.OpenAI) -> None:
    whole = there.responses.create(**asked())
    with there.responses.stream(**asked()) as stream:
        numbers = [event.sequence_number for event in stream]
        streamed = stream.get_final_response()
    assert numbers == list(range(len(numbers)))

    def said(response: Any) -> list[Any]:
        plain = [item.to_dict() for item in response.output]
        return [(item["type"], item["status"], item["content"][0]["text"]) for item in plain]

    assert said(streamed) == said(whole)


def test_a_strict_call_streams_as_it_is_written(there: openai.OpenAI) -> None:
    with there.responses.stream(**asked(TIME, tools=[CLOCK])) as stream:
        deltas = [
            one.delta for one in stream if one.type == "response.function_call_arguments.delta"
        ]
        call = stream.get_final_response().output[-1]
    assert len(deltas) > 1
    assert isinstance(call, ResponseFunctionToolCall)
    assert "".join(deltas) == call.arguments


def test_a_strict_call_that_is_cut_off_is_incomplete(there: openai.OpenAI) -> None:
    arguments = asked(
        TIME,
        tools=[CLOCK],
        tool_choice="required",
        reasoning={"effort": "none"},
        max_output_tokens=18,
    )
    whole = there.responses.create(**arguments)
    with there.responses.create(**arguments, stream=True) as events:
        streamed = list(events)[-1].response  # type: ignore[union-attr]
    for response in (whole, streamed):
        [call] = response.output
        assert (response.status, call.status) == ("incomplete", "incomplete")
        assert not call.arguments.endswith("}")


def test_the_async_client(url: str) -> None:
    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as there:
            first = await there.responses.create(**asked())
            async with there.responses.stream(**asked()) as stream:
                second = await stream.get_final_response()
        return [first.output_text, second.output_text]

    assert asyncio.run(talk()) == ["27 + 58 = 85."] * 2


def written(url: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream as they go over the wire."""
    body = {"model": "played", "input": "Hi", "stream": True, **fields}
    text = httpx.post(f"{url}v1/responses", json=body).text
    events = [block.splitlines() for block in text.strip().split("\n\n")]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in events
    ]


def test_the_whole_sequence_of_events(demo: LLM) -> None:
    with served(
        PlayedService(demo, [[thinks("Hm."), says("a"), says("b"), ends()]]), routes
    ) as url:
        events = written(url)
    assert all(name == event["type"] for name, event in events)
    places = [(name.removeprefix("response."), event.get("output_index")) for name, event in events]
    assert places == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("completed", None),
    ]
    added = [event["item"] for name, event in events if name == "response.output_item.added"]
    assert [item["type"] for item in added] == ["reasoning", "message"]
    assert all(item["content"] == [] for item in added)


def test_a_reply_of_nothing_is_an_empty_message(demo: LLM) -> None:
    with served(PlayedService(demo, [[ends()]]), routes) as url:
        response = httpx.post(f"{url}v1/responses", json={"input": "Hi"}).json()
        events = written(url)
    for output in (response["output"], events[-1][1]["response"]["output"]):
        assert [item["content"][0]["text"] for item in output] == [""]


# --- errors


@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model_not_found"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "invalid_value"),
        ({"top_p": 7}, openai.BadRequestError, "invalid_value"),
        ({"input": "one " * 5000}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_errors_are_those_of_the_client(
    there: openai.OpenAI, options: dict[str, Any], kind: type[Exception], code: str, streams: bool
) -> None:
    with pytest.raises(kind) as caught:
        there.responses.create(**asked(**{"prompt": SUM, **options}), stream=streams)
    assert getattr(caught.value, "code", None) == code


def test_a_busy_server_says_when_to_ask_again(demo: LLM) -> None:
    with (
        served(PlayedService(demo, [[BusyError("full", retry_after=7)]]), routes) as url,
        client(f"{url}v1") as there,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        there.responses.create(**asked(model="played"))
    assert caught.value.response.headers["Retry-After"] == "7"


def test_an_engine_that_fails_in_the_midst_of_a_stream(demo: LLM) -> None:
    replies: list[Event | Exception] = [thinks("Hm."), says("a"), EngineError("gone")]
    with served(PlayedService(demo, [replies]), routes) as url:
        name, event = written(url)[-1]
    assert name == "response.failed"
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert [item["type"] for item in event["response"]["output"]] == ["reasoning"]


# --- agents


@pytest.fixture
def agents() -> Any:
    found = pytest.importorskip("agents", reason="openai-agents is not installed")
    found.set_tracing_disabled(True)
    return found


def run_agent(agents: Any, url: str, *, streams: bool) -> Any:
    """The result of an agent with a clock, asked for the time."""

    def get_current_time(timezone: str) -> str:
        """Get current time in a specific timezone

        Args:
            timezone: IANA timezone name
        """
        return NOON

    async def talk() -> Any:
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as there:
            provider = agents.OpenAIProvider(openai_client=there, use_responses=True)
            config = agents.RunConfig(model_provider=provider, tracing_disabled=True)
            agent = agents.Agent(
                name="clock",
                instructions="Be brief.",
                tools=[agents.function_tool(get_current_time)],
                model="demo",
                model_settings=agents.ModelSettings(temperature=0),
            )
            if not streams:
                return await agents.Runner.run(agent, TIME, run_config=config)
            result = agents.Runner.run_streamed(agent, TIME, run_config=config)
            async for _ in result.stream_events():
                pass
            return result

    return asyncio.run(talk())


@pytest.mark.parametrize("streams", [False, True])
def test_an_agent_calls_its_tool_and_answers(agents: Any, url: str, streams: bool) -> None:
    result = run_agent(agents, url, streams=streams)
    assert result.final_output == "It is 12:34 in Tokyo."
    assert [item.type for item in result.new_items] == [
        "reasoning_item",
        "tool_call_item",
        "tool_call_output_item",
        "reasoning_item",
        "message_output_item",
    ]
