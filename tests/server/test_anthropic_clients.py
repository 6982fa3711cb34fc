"""Anthropic's own client against a real server with the demo model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import pydantic
import pytest
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock

from mlx_qwen3 import LLM
from mlx_qwen3.errors import BusyError, EngineError
from mlx_qwen3.generation.output import CallDelta, Event
from mlx_qwen3.server.anthropic_events import signature
from mlx_qwen3.server.anthropic_messages import routes
from mlx_qwen3.server.observer import HEADER
from tests.fakes import ends, says, thinks
from tests.server.running import running
from tests.server.services import PlayedService, real, served

SUM = "What is 27 + 58?"
CLOCK: Any = {
    "name": "get_current_time",
    "description": "Get current time in a specific timezone",
    "input_schema": {
        "type": "object",
        "properties": {"timezone": {"type": "string", "description": "IANA timezone name"}},
        "required": ["timezone"],
    },
}
NOON = '{"timezone": "Asia/Tokyo", "datetime": "2025-01-01T12:34:00+09:00"}'
GREEDY = {"temperature": 0}  # this client has no argument for it any more


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(real(), routes) as address:
        yield address


@pytest.fixture(scope="module")
def there(url: str) -> Iterator[anthropic.Anthropic]:
    with client(url) as opened:
        yield opened


def client(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


def asked(prompt: str | list[Any] = SUM, **options: Any) -> dict[str, Any]:
    """Arguments of `messages.create`."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    extra = {**GREEDY, **options.pop("extra_body", {})}
    return {"model": "demo", "max_tokens": 300, "messages": turns, "extra_body": extra, **options}


def texts(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


# --- whole


def test_a_message(there: anthropic.Anthropic) -> None:
    message = there.messages.create(**asked("Hello!"))
    assert [block.type for block in message.content] == ["text"]
    assert (message.role, message.model, message.stop_reason) == ("assistant", "demo", "end_turn")
    assert message.stop_sequence is None
    assert message.id.startswith("msg_")


def test_thinking_comes_first_and_is_signed(there: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 200}
    message = there.messages.create(**asked(thinking=thinking))
    thought, answer = message.content
    assert isinstance(thought, ThinkingBlock)
    assert isinstance(answer, TextBlock)
    assert "carry" in thought.thinking
    assert thought.signature == signature(thought.thinking)
    assert answer.text == "27 + 58 = 85."
    details = message.usage.output_tokens_details
    assert details is not None
    assert 0 < details.thinking_tokens < message.usage.output_tokens


def test_a_thinking_budget_holds(there: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 20}
    message = there.messages.create(**asked(thinking=thinking))
    thought = message.content[0]
    assert isinstance(thought, ThinkingBlock)
    assert "Considering the limited time" in thought.thinking


def test_thinking_that_is_not_to_be_shown(there: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "adaptive", "display": "omitted"}
    whole = there.messages.create(**asked(thinking=thinking))
    with there.messages.stream(**asked(thinking=thinking)) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        thought = message.content[0]
        assert isinstance(thought, ThinkingBlock)
        assert (thought.thinking, len(thought.signature)) == ("", 44)
        assert texts(message) == "27 + 58 = 85."


def test_a_tool_is_called_and_its_result_told(there: anthropic.Anthropic) -> None:
    question = {"role": "user", "content": "What time is it in Tokyo?"}
    first = there.messages.create(**asked([question], tools=[CLOCK]))
    [use] = first.content
    assert isinstance(use, ToolUseBlock)
    assert (first.stop_reason, use.name, use.input) == (
        "tool_use",
        "get_current_time",
        {"timezone": "Asia/Tokyo"},
    )
    result = {"type": "tool_result", "tool_use_id": use.id, "content": NOON}
    turns = [question, {"role": "assistant", "content": first.content}]
    second = there.messages.create(
        **asked([*turns, {"role": "user", "content": [result]}], tools=[CLOCK])
    )
    assert texts(second) == "It is 12:34 in Tokyo."


@pytest.mark.parametrize("streams", [False, True])
def test_a_choice_of_tools_is_kept_to(there: anthropic.Anthropic, streams: bool) -> None:
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    arguments = asked("Hello!", tools=[CLOCK], tool_choice=choice)
    if streams:
        with there.messages.stream(**arguments) as stream:
            message: Message = stream.get_final_message()
    else:
        message = there.messages.create(**arguments)
    assert [block.type for block in message.content] == ["tool_use"]
    assert message.stop_reason == "tool_use"


def test_a_stop_sequence_is_named(there: anthropic.Anthropic) -> None:
    message = there.messages.create(**asked(stop_sequences=["zzz", " = "]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " = ")
    assert texts(message) == "27 + 58"


def test_the_end_of_the_tokens(there: anthropic.Anthropic) -> None:
    message = there.messages.create(**asked(max_tokens=3))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_an_answer_of_a_form(there: anthropic.Anthropic) -> None:
    class Right(pydantic.BaseModel):
        verdict: Literal["yes", "no"]

    parsed = there.messages.parse(**asked("Is 27 + 58 = 85?", output_format=Right))
    assert parsed.parsed_output is not None
    assert parsed.parsed_output.verdict in ("yes", "no")


def test_tokens_are_counted_as_they_are_read(there: anthropic.Anthropic) -> None:
    question: Any = [{"role": "user", "content": SUM}]
    counted = there.messages.count_tokens(model="demo", messages=question, tools=[CLOCK])
    usage = there.messages.create(**asked(tools=[CLOCK])).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_what_was_read_before_is_counted_apart(there: anthropic.Anthropic) -> None:
    long = "Copy this: " + ", ".join(["apple", "pear", "plum"] * 20)
    there.messages.create(**asked(long, max_tokens=2))
    again = there.messages.create(**asked(long, max_tokens=2)).usage
    assert (again.cache_read_input_tokens or 0) > again.input_tokens


def test_the_beta_client(there: anthropic.Anthropic) -> None:
    message = there.beta.messages.create(
        **asked("Hello!", betas=["interleaved-thinking-2025-05-14"])
    )
    assert message.stop_reason == "end_turn"


# --- streams


def test_a_stream_is_the_message(there: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "adaptive"}
    whole = there.messages.create(**asked(thinking=thinking))
    with there.messages.stream(**asked(thinking=thinking)) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    contents = [[block.to_dict() for block in m.content] for m in (whole, streamed)]
    for block in contents[1]:
        block.pop("parsed_output", None)
    assert contents[0] == contents[1]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert streamed.stop_reason == "end_turn"


def test_text_streams_in_pieces(there: anthropic.Anthropic) -> None:
    with there.messages.stream(**asked()) as stream:
        pieces = list(stream.text_stream)
    assert len(pieces) > 3


def test_the_async_client(url: str) -> None:
    async def talk() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as there:
            first = await there.messages.create(**asked())
            async with there.messages.stream(**asked()) as stream:
                second = "".join([piece async for piece in stream.text_stream])
        return [texts(first), second]

    first, second = asyncio.run(talk())
    assert first == second != ""


def test_several_at_once_do_not_mix(url: str) -> None:
    async def one(there: anthropic.AsyncAnthropic, number: int) -> str:
        thinking: Any = {"type": "adaptive"}
        async with there.messages.stream(
            **asked(f"What is {number} + 1?", thinking=thinking)
        ) as stream:
            return texts(await stream.get_final_message())

    async def talk() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as there:
            return await asyncio.gather(*(one(there, number) for number in range(4)))

    assert asyncio.run(talk()) == [f"{number} + 1 = {number + 1}." for number in range(4)]


def written(url: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream as they go over the wire."""
    turns = [{"role": "user", "content": "Hi"}]
    body = {"model": "played", "max_tokens": 9, "messages": turns, "stream": True, **fields}
    text = httpx.post(f"{url}v1/messages", json=body).text
    events = [block.splitlines() for block in text.strip().split("\n\n")]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in events
    ]


def test_every_event_has_its_name_and_blocks_their_place(demo: LLM) -> None:
    with served(
        PlayedService(demo, [[thinks("Hm."), says("a"), says("b"), ends()]]), routes
    ) as url:
        events = written(url)
    assert all(name == event["type"] for name, event in events)
    assert [(name, event.get("index")) for name, event in events] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert [event["content_block"] for name, event in events if name == "content_block_start"] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
    ]


@pytest.mark.parametrize(("eager", "deltas"), [(None, 1), (False, 1), (True, 2)])
def test_calls_stream_as_written_where_that_was_asked_for(
    demo: LLM, eager: bool | None, deltas: int
) -> None:
    from mlx_qwen3.text.tool_calls import ToolCall

    call = ToolCall("clock", {"zone": "UTC"}, "<tool_call>")
    replies = [
        Event("tool_call", call=CallDelta(0, "clock", '{"zone"')),
        Event("tool_call", "<tool_call>", call, call=CallDelta(0, "clock", ': "UTC"}')),
        ends("tool_calls"),
    ]
    tool = {"name": "clock", "input_schema": {}, "eager_input_streaming": eager}
    with served(PlayedService(demo, [replies]), routes) as url:
        events = written(url, tools=[tool])
    said = [event["delta"] for name, event in events if name == "content_block_delta"]
    assert len(said) == deltas
    assert json.loads("".join(one["partial_json"] for one in said)) == {"zone": "UTC"}
    [start] = [event for name, event in events if name == "content_block_start"]
    assert start["content_block"]["input"] == {}


# --- errors


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"model": "claude"}, anthropic.NotFoundError, "not_found_error"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ({"container": "c"}, anthropic.BadRequestError, "invalid_request_error"),
        ({"extra_body": {"top_p": 7}}, anthropic.BadRequestError, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_errors_are_those_of_the_client(
    there: anthropic.Anthropic,
    options: dict[str, Any],
    kind: type[Exception],
    word: str,
    streams: bool,
) -> None:
    with pytest.raises(kind) as caught:
        there.messages.create(**asked(**options), stream=streams)
    error: Any = caught.value
    assert error.type == word
    assert error.request_id.startswith("req_")
    assert error.body["request_id"] == error.request_id


def test_a_prompt_that_is_too_long_is_a_bad_request(there: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="do not fit the context"):
        there.messages.create(**asked("one " * 5000))


def test_a_busy_server_says_when_to_ask_again(demo: LLM) -> None:
    with (
        served(PlayedService(demo, [[BusyError("full", retry_after=7)]]), routes) as url,
        client(url) as there,
        pytest.raises(anthropic.RateLimitError) as caught,
    ):
        there.messages.create(**asked(model="played"))
    assert caught.value.response.headers["Retry-After"] == "7"


def test_an_engine_that_fails_before_the_first_word(demo: LLM) -> None:
    with (
        served(PlayedService(demo, [[EngineError("gone")]]), routes) as url,
        client(url) as there,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        there.messages.create(**asked(model="played"), stream=True)
    assert (caught.value.status_code, caught.value.type) == (503, "overloaded_error")


def test_an_engine_that_fails_in_the_midst_of_a_stream(demo: LLM) -> None:
    with served(PlayedService(demo, [[says("a"), EngineError("gone")]]), routes) as url:
        events = written(url)
        with (
            client(url) as there,
            pytest.raises(anthropic.APIStatusError, match="gone"),
            there.messages.stream(**asked(model="played")) as stream,
        ):
            stream.until_done()
    name, error = events[-1]
    assert name == "error"
    assert error["error"] == {"type": "overloaded_error", "message": "gone"}


def test_the_log_knows_a_request_by_the_name_its_client_has() -> None:
    with running() as there, client(str(there.base_url)) as own:
        with pytest.raises(anthropic.NotFoundError) as caught:
            own.messages.create(**asked(model="claude"))
        raw = own.messages.with_raw_response.create(**asked("Hello!", max_tokens=2))
    for headers in (caught.value.response.headers, raw.headers):
        assert headers["request-id"] == headers[HEADER] != ""
