"""chat/completions without HTTP: bodies to options, events to chunks and objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mlx_qwen3.generation.output import CallDelta, Completion, Event, TokenLogprob, Usage
from mlx_qwen3.server.body import Limits, parse_body
from mlx_qwen3.server.effort import EFFORTS
from mlx_qwen3.server.openai_chat import ChatBody, chat_ask
from mlx_qwen3.server.openai_chat_events import ChatChunks, chat_completion
from mlx_qwen3.server.problems import Problem
from mlx_qwen3.server.replies import Ask
from mlx_qwen3.text.tool_calls import ToolCall
from tests.fakes import ends

FORMAT = "response_format"
EFFORT = "reasoning_effort"
USER = {"role": "user", "content": "Hi"}
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def ask(*messages: Any, limits: Limits | None = None, **fields: Any) -> Ask:
    body = {"messages": list(messages) or [USER], **fields}
    return chat_ask(parse_body(json.dumps(body).encode(), ChatBody, limits or Limits()))


def asked(**fields: Any) -> dict[str, Any]:
    """The options of a body, without those every one has."""
    options = dict(ask(**fields).options)
    assert options.pop("logit_bias") == {}
    return options


# --- bodies ------------------------------------------------------------------------------


def test_nothing_is_decided_for_the_model() -> None:
    assert asked() == {}
    nulls = dict.fromkeys(name for name in ChatBody.model_fields if name != "messages")
    assert asked(**nulls) == {}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"temperature": 0, "top_p": 0.9, "top_k": 5, "min_p": 0.1}, None),
        ({"presence_penalty": 1, "frequency_penalty": -1.5, "repetition_penalty": 1.1}, None),
        ({"seed": 7, "stop": "."}, None),
        ({"stop": [".", "!"], "max_tokens": 5}, None),
        ({"max_kv_size": 64, "kv_bits": 8}, None),
        ({"seed": -1}, {"seed": (1 << 64) - 1}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": False}, {}),
        ({"thinking_budget": 5}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"thinking": False}),
        ({"reasoning_effort": "none"}, {"thinking": False}),
        ({"reasoning_effort": "low"}, {"thinking": True, "thinking_budget": 1024}),
        ({"reasoning_effort": "xhigh"}, {"thinking": True}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        (
            {FORMAT: {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
            {"schema": SCHEMA},
        ),
        ({"tools": [TOOL]}, None),
        ({"tools": [TOOL], "tool_choice": "required"}, None),
        ({"tools": [TOOL], "parallel_tool_calls": False}, None),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tools": [TOOL], "tool_choice": "weather"},
        ),
        ({"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}, {}),
        ({"modalities": ["text"], "prompt_cache_key": "k", "safety_identifier": "s"}, {}),
    ],
    ids=str,
)
def test_fields_become_options(fields: dict[str, Any], options: dict[str, Any] | None) -> None:
    assert asked(**fields) == (fields if options is None else options)


def test_bias_is_by_token_id() -> None:
    assert ask(logit_bias={"5": -100, "77": 1.5}).options["logit_bias"] == {5: -100.0, 77: 1.5}


def test_every_effort_has_its_budget() -> None:
    off, *budgets = [asked(reasoning_effort=effort) for effort in EFFORTS]
    assert off == {"thinking": False}
    assert all(one["thinking"] for one in budgets)
    limits = [one.get("thinking_budget", float("inf")) for one in budgets]
    assert limits == sorted(limits)
    assert limits[-1] == float("inf")


def test_copies_are_asked_for() -> None:
    assert ask(n=3).copies == 3
    assert ask().copies == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"reasoning_effort": "low", "thinking_budget": 9}, "reasoning_effort"),
        ({EFFORT: "none", "chat_template_kwargs": {"enable_thinking": True}}, EFFORT),
        ({EFFORT: "xhigh", "thinking_budget": 9}, EFFORT),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"chat_template_kwargs": {"add_vision_id": True}}, "chat_template_kwargs.add_vision_id"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{**TOOL, "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {FORMAT: {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"logit_bias": {"the": 1}}, "logit_bias.the"),
        ({"logit_bias": {"5": 1e6}}, "logit_bias.5"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"store": True}, "store"),
        ({"functions": []}, "functions"),
        ({"modalities": ["text", "audio"]}, "modalities[1]"),
        ({"seed": 1 << 64}, "seed"),
        ({"kv_bits": 3}, "kv_bits"),
        ({"messages": []}, "messages"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Problem) as caught:
        ask(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param.rpartition(".")[2] in caught.value.message


def test_advice_for_what_others_offer() -> None:
    with pytest.raises(Problem, match="functions is not supported; use tools"):
        ask(functions=[])


def test_limits_are_those_of_the_server() -> None:
    small = Limits(messages=1, tools=1, schema_bytes=10, choices=2)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("messages", {"messages": [USER, USER]}),
        ("tools", {"tools": [TOOL, TOOL]}),
        ("tools[0].function.parameters", {"tools": [TOOL]}),
        ("n", {"n": 3}),
    ]
    for param, fields in wrong:
        with pytest.raises(Problem) as caught:
            ask(limits=small, **fields)
        assert caught.value.param == param


# --- messages ----------------------------------------------------------------------------


CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_messages_of_every_role() -> None:
    messages = ask(
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [part("One"), part("Two")]},
        {**USER, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALLED], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": [part("4")]},
        {"role": "assistant", "content": [part("4.")], "annotations": [], "audio": None},
        {"role": "assistant", "refusal": "No."},
        {"role": "assistant", "content": "x", "reasoning": "y"},
    ).prompt
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "One\nTwo"},
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALLED], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "content": "4."},
        {"role": "assistant", "content": "No."},
        {"role": "assistant", "content": "x", "reasoning_content": "y"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({**USER, "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({**USER, "content": [part("x"), {"type": "file"}]}, "messages[0].content[1].type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "function", "name": "f", "content": "4"}, "messages[0].role"),
        ({"content": "Hi"}, "messages[0].role"),
        ({"role": "tool", "content": "4"}, "messages[0].tool_call_id"),
        (
            {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "f"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "function_call": {"name": "f"}}, "messages[0].function_call"),
        ({"role": "user", "content": "x", "cache_control": {}}, "messages[0].cache_control"),
    ],
    ids=str,
)
def test_messages_that_cannot_be_read_are_named(message: Any, param: str) -> None:
    with pytest.raises(Problem) as caught:
        ask(message)
    assert caught.value.param == param


# --- events ------------------------------------------------------------------------------

CALL = [
    Event("tool_call", call=CallDelta(0, "weather")),
    Event("tool_call", call=CallDelta(0, "weather", '{"city": ')),
    Event(
        "tool_call",
        "raw",
        ToolCall("weather", {"city": "Rome"}),
        call=CallDelta(0, "weather", '"Rome"}'),
    ),
]
SECOND = Event("tool_call", "raw", ToolCall("now"), call=CallDelta(1, "now", "{}"))


def ended(text: str = "", thinking: str = "", **fields: Any) -> Event:
    event = ends()
    assert event.completion is not None
    values = {**vars(event.completion), "text": text, "thinking": thinking, **fields}
    return Event("end", completion=Completion(**values))


def token(text: str, logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(ord(text[-1]), text, logprob, ((ord(text[-1]), text, logprob),))


def spelled(token_id: int) -> bytes:
    return bytes([token_id])


def choice_of(*events: Event) -> dict[str, Any]:
    choice: dict[str, Any] = chat_completion("m", [events])["choices"][0]
    return choice


def deltas(events: Sequence[Event], **options: Any) -> list[dict[str, Any]]:
    chunks = ChatChunks("m", **options)
    made = [chunk for event in events for chunk in chunks.of(0, event)]
    return [chunk["choices"][0] for chunk in made]


def test_a_whole_reply() -> None:
    whole = chat_completion("m", [[Event("answer", "Hi"), ended("Hi", "Hm.")]])
    assert (whole["object"], whole["model"]) == ("chat.completion", "m")
    assert whole["id"].startswith("chatcmpl-")
    assert whole["system_fingerprint"].startswith("mlx-qwen3-")
    assert whole["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hi",
                "refusal": None,
                "reasoning_content": "Hm.",
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


def test_calls_of_a_whole_reply() -> None:
    choice = choice_of(*CALL, SECOND, ended(finish_reason="tool_calls"))
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", None)
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Rome"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_a_call_that_was_cut_off_is_text_with_a_warning() -> None:
    events = [CALL[0], CALL[1], Event("answer", "<tool_call>", warning="cut off")]
    choice = choice_of(*events, ended("<tool_call>", finish_reason="length", warnings=("cut off",)))
    assert "tool_calls" not in choice["message"]
    assert choice["message"]["content"] == "<tool_call>"
    assert choice["warnings"] == ["cut off"]


def test_chunks_begin_with_the_role_and_end_with_the_reason() -> None:
    made = deltas([Event("thinking", "Hm."), Event("answer", "Hi"), ended()])
    assert [choice["delta"] for choice in made] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "Hi"},
        {},
    ]
    assert [choice["finish_reason"] for choice in made] == [None, None, None, "stop"]


def test_calls_stream_as_they_grow() -> None:
    made = deltas([*CALL, SECOND, ended(finish_reason="tool_calls")])
    calls = [choice["delta"]["tool_calls"][0] for choice in made[1:-1]]
    assert [call["index"] for call in calls] == [0, 0, 0, 1]
    assert ["id" in call for call in calls] == [True, False, False, True]
    assert [call["function"].get("name") for call in calls] == ["weather", None, None, "now"]
    assert "".join(c["function"]["arguments"] for c in calls[:3]) == '{"city": "Rome"}'


def test_choices_have_chunks_of_their_own() -> None:
    chunks = ChatChunks("m", usage=True)
    order = [(1, Event("answer", "b")), (0, Event("answer", "a")), (1, ended()), (0, ended())]
    made = [chunk for index, event in order for chunk in chunks.of(index, event)]
    assert [chunk["choices"][0]["index"] for chunk in made] == [1, 1, 0, 0, 1, 0]
    assert all(chunk["usage"] is None for chunk in made)
    assert len({chunk["id"] for chunk in made}) == 1
    (last,) = chunks.end()
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 12
    assert last["usage"]["completion_tokens"] == 68


def test_usage_is_told_when_asked_for() -> None:
    assert list(ChatChunks("m").end()) == []
    usage = Usage(10, 7, 4, cached_tokens=3)
    whole = chat_completion("m", [[ended(usage=usage)], [ended(usage=usage)]])
    assert whole["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 14,
        "total_tokens": 24,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 8},
    }


def test_logprobs_are_those_of_the_answer() -> None:
    events = [
        Event("thinking", "Hm", logprobs=(token("H"),)),
        Event("answer", "Hi", logprobs=(token("\n"), token("H"), token("i", float("-inf")))),
        Event("answer", "\n", logprobs=(token("\n"),)),
        CALL[0],
        ended("Hi\n"),
    ]
    whole = chat_completion("m", [events], spelled)
    content = whole["choices"][0]["logprobs"]["content"]
    assert [one["token"] for one in content] == ["H", "i", "\n"]
    assert content[0]["bytes"] == [72]
    assert content[1]["logprob"] == content[1]["top_logprobs"][0]["logprob"] == -9999.0
    streamed = [choice["logprobs"] for choice in deltas(events, token_bytes=spelled)]
    assert [one for choice in streamed if choice for one in choice["content"]] == content
    assert all(choice["logprobs"] is None for choice in deltas(events))
