"""Bodies of OpenAI's Responses API: what they ask of a model, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_qwen3.server.body import Limits, parse_body
from mlx_qwen3.server.problems import Problem
from mlx_qwen3.server.responses_body import ResponsesBody
from mlx_qwen3.server.responses_prompt import ask, messages, options

CLOCK = {"type": "function", "name": "clock", "description": "The time.", "parameters": None}
LAMP = {"type": "function", "name": "lamp", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "call_1", "name": "clock", "arguments": '{"zone": 1}'}
HI = {"role": "user", "content": "Hi"}


def body(given: Any = "Hi", **fields: Any) -> ResponsesBody:
    whole = {"model": "demo", "input": given, **fields}
    return parse_body(json.dumps(whole).encode(), ResponsesBody, Limits())


def refused(given: Any = "Hi", **fields: Any) -> str:
    """What the error says of a body that is no use."""
    with pytest.raises(Problem) as caught:
        ask(body(given, **fields))
    assert caught.value.status == 400
    assert caught.value.param is not None
    return caught.value.message


def output(content: Any, call_id: str = "call_1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": content}


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in options(body(**fields)).items() if value is not None}


# --- messages


@pytest.mark.parametrize(
    "said",
    [
        "Hi",
        [HI],
        [{"type": "message", **HI}],
        [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
    ],
)
def test_input_in_all_its_forms(said: Any) -> None:
    assert messages(body(said)) == [HI]


def test_instructions_come_first_and_developers_are_the_system() -> None:
    developer = {"role": "developer", "content": "In French."}
    assert messages(body([developer, HI], instructions="Be brief.")) == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "In French."},
        HI,
    ]


def test_what_the_model_said_in_a_row_is_one_turn() -> None:
    items = [
        HI,
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "No."}],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
            "encrypted_content": None,
        },
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}
            ],
        },
        {**CALL, "id": "fc_1", "status": "completed"},
        output("12:00"),
        {"role": "user", "content": "And in Lima?"},
    ]
    function = {"name": "clock", "arguments": {"zone": 1}}
    assert messages(body(items)) == [
        HI,
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "name": "clock", "content": "12:00"},
        {"role": "user", "content": "And in Lima?"},
    ]


def test_a_summary_stands_for_reasoning_that_is_not_there() -> None:
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    turn = messages(body([HI, summary, {"role": "assistant", "content": "Yes."}, HI]))[1]
    assert turn["reasoning_content"] == "Hm."


@pytest.mark.parametrize("arguments", ["{oh", "[1]", '"text"', ""])
def test_arguments_that_are_no_object_stay_as_they_were_written(arguments: str) -> None:
    items = [HI, {**CALL, "arguments": arguments}, output("?")]
    [call] = messages(body(items))[1]["tool_calls"]
    assert call["function"]["arguments"] == arguments


def test_outputs_may_be_parts() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages(body([HI, CALL, output(parts)]))[-1]["content"] == "a\nb"


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([], "input is a list"),
        ([output("12:00")], "input[0].call_id names no function_call"),
        ([HI, CALL, output("12:00", "call_2")], "input[2].call_id"),
        ([{"type": "item_reference", "id": "x"}], 'input[0].type is "item_reference"'),
        ([{"type": "web_search_call"}], 'input[0].type is "web_search_call"'),
        ([{"role": "user", "content": [{"type": "input_image"}]}], '"input_image"'),
        ([{"role": "tool", "content": "x"}], 'input[0].role is "tool"'),
    ],
)
def test_what_is_no_input_is_named(items: list[Any], words: str) -> None:
    assert words in refused(items)


# --- options


def test_what_is_left_out_is_left_to_the_model() -> None:
    assert given() == {}


def test_the_names_of_options() -> None:
    assert given(max_output_tokens=9, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=1) == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 1,
    }


def test_tools_in_the_form_of_templates() -> None:
    clock = {
        "name": "clock",
        "description": "The time.",
        "parameters": {"type": "object", "properties": {}},
    }
    lamp = {"name": "lamp", "parameters": {"type": "object"}, "strict": True}
    assert given(tools=[CLOCK, LAMP])["tools"] == [
        {"type": "function", "function": clock},
        {"type": "function", "function": lamp},
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("required", ("required", ["clock", "lamp"])),
        (
            {"type": "function", "name": "lamp"},
            ({"type": "function", "function": {"name": "lamp"}}, ["clock", "lamp"]),
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "lamp"}],
            },
            ("required", ["lamp"]),
        ),
    ],
)
def test_choices_of_tools(choice: Any, expected: tuple[Any, list[str]]) -> None:
    found = given(tools=[CLOCK, LAMP], tool_choice=choice)
    names = [tool["function"]["name"] for tool in found["tools"]]
    assert (found["tool_choice"], names) == expected


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "name": "n", "schema": {"type": "null"}}, {"type": "null"}),
    ],
)
def test_forms_of_the_answer(form: dict[str, Any], schema: Any) -> None:
    assert given(text={"format": form}).get("schema") == schema


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning": {"effort": "none"}}, {"thinking": False}),
        ({"reasoning": {"effort": "low"}}, {"thinking": True, "thinking_budget": 1024}),
        ({"reasoning": {"effort": "max"}}, {"thinking": True}),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"thinking_budget": 7}, {"thinking_budget": 7}),
    ],
)
def test_effort_and_budget(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert given(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
        ({"top_logprobs": 3}, 3),
        ({"include": ["reasoning.encrypted_content"]}, None),
    ],
)
def test_logprobs(fields: dict[str, Any], logprobs: int | None) -> None:
    assert given(**fields).get("logprobs") == logprobs


def test_metadata_is_accepted() -> None:
    labels = {
        "metadata": {"a": "b"},
        "user": "me",
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "service_tier": "auto",
        "truncation": "disabled",
        "background": False,
        "text": {"verbosity": "medium"},
        "previous_response_id": None,
        "conversation": None,
        "prompt": None,
        "max_tool_calls": None,
        "stream_options": {"include_obfuscation": False},
    }
    for store in (None, True, False):
        assert given(store=store, **labels) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"previous_response_id": "resp_1"}, "send the whole input"),
        ({"conversation": {"id": "x"}}, "send the whole input"),
        ({"prompt": {"id": "x"}}, "prompt is an object; expected null"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"effort": "low"}, "thinking_budget": 7}, "thinking_budget"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, 'tools[0].type is "web_search"'),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, 'tools[0].type is "mcp"'),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].name is 'clock'"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        (
            {
                "tools": [CLOCK],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "lamp"}],
                },
            },
            "tool_choice.tools names 'lamp'",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"frequency_penalty": 1}, "frequency_penalty is not supported"),
    ],
)
def test_what_is_not_supported_is_named(fields: dict[str, Any], words: str) -> None:
    assert words in refused(**fields)
