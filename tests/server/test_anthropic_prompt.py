"""Bodies of Anthropic's Messages API: what they ask of a model, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_qwen3 import LLM
from mlx_qwen3.errors import ContextOverflowError, OptionError
from mlx_qwen3.server.anthropic_body import CountBody, MessagesBody
from mlx_qwen3.server.anthropic_prompt import MessageAsk, count, messages, options, thinking
from mlx_qwen3.server.body import Limits, parse_body
from mlx_qwen3.server.problems import Problem

HI = {"role": "user", "content": "Hi"}
CLOCK = {"name": "clock", "description": "The time.", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "clock", "input": {"zone": "UTC"}}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def result(content: Any = "12:00", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def body(**fields: Any) -> MessagesBody:
    whole = {"model": "demo", "max_tokens": 100, "messages": [HI], **fields}
    return parse_body(json.dumps(whole).encode(), MessagesBody, Limits())


def refused(**fields: Any) -> str:
    """What the error says of a body that is no use."""
    with pytest.raises(Problem) as caught:
        MessageAsk.of(body(**fields))
    assert caught.value.status == 400
    return caught.value.message


# --- messages


def test_text_is_text_in_either_form() -> None:
    plain = [{"role": "system", "content": "Be brief."}, HI]
    assert messages(body(system="Be brief.")) == plain
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    blocks = [{"role": "user", "content": [text("Hi", **cached)]}]
    assert messages(body(system=[text("Be brief.", **cached)], messages=blocks)) == plain


def test_blocks_of_text_are_lines() -> None:
    turns = said(("user", [text("One"), text("Two")]))
    assert messages(body(messages=turns)) == [{"role": "user", "content": "One\nTwo"}]


def test_turns_of_one_role_in_a_row_are_one() -> None:
    turns = said(("user", "One"), ("user", "Two"))
    assert messages(body(messages=turns)) == [{"role": "user", "content": "One\nTwo"}]


def test_a_round_of_thinking_calls_and_results() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"}
    turns = said(
        ("user", "What time is it?"),
        ("assistant", [thought, text("Let me see."), USE]),
        ("user", [result(), text("And in Lima?")]),
    )
    function = {"name": "clock", "arguments": {"zone": "UTC"}}
    assert messages(body(messages=turns, tools=[CLOCK])) == [
        {"role": "user", "content": "What time is it?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "toolu_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "name": "clock", "content": "12:00"},
        {"role": "user", "content": "And in Lima?"},
    ]


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (result([text("a"), text("b")]), "a\nb"),
        (result("no such zone", is_error=True), "Error: no such zone"),
        ({"type": "tool_result", "tool_use_id": "toolu_1"}, ""),
    ],
)
def test_results_in_all_their_forms(block: dict[str, Any], content: str) -> None:
    turns = said(("user", "?"), ("assistant", [USE]), ("user", [block]))
    assert messages(body(messages=turns))[-1]["content"] == content


def test_redacted_thinking_is_dropped() -> None:
    redacted = {"type": "redacted_thinking", "data": "x"}
    turns = said(("user", "?"), ("assistant", [redacted, text("Yes.")]), ("user", "Why?"))
    assert messages(body(messages=turns))[1] == {"role": "assistant", "content": "Yes."}


def test_a_system_turn_amid_the_conversation() -> None:
    turns = said(("user", "?"), ("assistant", "!"), ("system", "Be brief."), ("user", "?"))
    assert [turn["role"] for turn in messages(body(messages=turns))][2] == "system"


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        (said(("user", [{"type": "image", "source": {}}])), '"image"'),
        (said(("user", [{"type": "document", "source": {}}])), '"document"'),
        (said(("user", [USE])), "messages[0].content[0] is a tool_use block"),
        (said(("assistant", [result()]), ("user", "?")), "is a tool_result block"),
        (said(("user", [result()])), "messages[0].content[0].tool_use_id"),
        (said(("user", "?"), ("assistant", "The answer is")), "prefilled"),
        (said(("tool", "?")), 'messages[0].role is "tool"'),
        ([], "messages is a list"),
    ],
)
def test_what_is_no_conversation_is_named(turns: list[Any], words: str) -> None:
    assert words in refused(messages=turns)


def test_an_image_in_a_result_is_named() -> None:
    turns = said(("user", "?"), ("assistant", [USE]), ("user", [result([{"type": "image"}])]))
    assert 'messages[2].content[0].content[0].type is "image"' in refused(messages=turns)


# --- options


def test_the_names_of_options() -> None:
    whole = body(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["END"], tools=[CLOCK])
    given = {name: value for name, value in options(whole).items() if value is not None}
    function = {
        "name": "clock",
        "description": "The time.",
        "parameters": CLOCK["input_schema"],
    }
    assert given == {
        "max_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "stop": ["END"],
        "tools": [{"type": "function", "function": function}],
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ("auto", None)),
        ({"type": "any"}, ("required", None)),
        ({"type": "none"}, ("none", None)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", False)),
        (
            {"type": "tool", "name": "clock", "disable_parallel_tool_use": False},
            ({"type": "function", "function": {"name": "clock"}}, True),
        ),
    ],
)
def test_choices_of_tools(choice: dict[str, Any], expected: tuple[Any, Any]) -> None:
    found = options(body(tools=[CLOCK], tool_choice=choice))
    assert (found["tool_choice"], found["parallel_tool_calls"]) == expected


def test_strict_tools_stay_strict() -> None:
    [tool] = options(body(tools=[{**CLOCK, "strict": True}]))["tools"]
    assert tool["function"]["strict"] is True


def test_a_form_of_the_answer_in_either_place() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert options(body(output_config={"format": form}))["schema"] == {"type": "object"}
    assert options(body(output_format=form))["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("wanted", "mode", "expected"),
    [
        (None, "hybrid", False),
        (None, "always", None),
        (None, "never", None),
        ({"type": "disabled"}, "hybrid", False),
        ({"type": "disabled"}, "always", False),  # which the model refuses
        ({"type": "enabled", "budget_tokens": 20}, "hybrid", True),
        ({"type": "enabled", "budget_tokens": 20}, "never", True),  # this, too
        ({"type": "adaptive"}, "hybrid", True),
        ({"type": "adaptive"}, "always", None),
        ({"type": "adaptive"}, "never", None),
    ],
)
def test_who_thinks(wanted: Any, mode: Any, expected: bool | None) -> None:
    assert thinking(body(thinking=wanted), mode) is expected


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 20}}, 20),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, 1024),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, None),
        ({"output_config": {"effort": "low"}}, None),
    ],
)
def test_budgets_of_thinking(fields: dict[str, Any], budget: int | None) -> None:
    assert options(body(**fields))["thinking_budget"] == budget


def test_metadata_is_accepted() -> None:
    plain = options(body())
    labelled = body(
        metadata={"user_id": "me"},
        service_tier="auto",
        speed="standard",
        cache_control={"type": "ephemeral"},
        betas=["some-beta"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert options(labelled) == plain


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"container": "c"}, "container is not supported"),
        ({"mcp_servers": []}, "mcp_servers is not supported"),
        ({"speed": "fast"}, "speed"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens is 100"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{**CLOCK, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].name is 'clock'"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management"),
    ],
)
def test_what_is_not_supported_is_named(fields: dict[str, Any], words: str) -> None:
    assert words in refused(**fields)


def test_max_tokens_is_required() -> None:
    with pytest.raises(Problem, match="max_tokens is missing"):
        parse_body(json.dumps({"model": "demo", "messages": [HI]}).encode(), MessagesBody, Limits())


# --- with a model


def test_a_limit_beyond_the_context_ends_with_it(demo: LLM) -> None:
    [request] = MessageAsk.of(body(max_tokens=1_000_000)).requests(demo)
    assert len(request.prompt_ids) + request.max_tokens == demo.context_length


def test_a_prompt_beyond_the_context_is_refused(demo: LLM) -> None:
    long = said(("user", "one " * demo.context_length))
    with pytest.raises(ContextOverflowError):
        MessageAsk.of(body(messages=long, max_tokens=1_000_000)).requests(demo)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"thinking": {"type": "enabled", "budget_tokens": 20}},
        {"tools": [CLOCK]},
        {"tools": [CLOCK], "tool_choice": {"type": "none"}},
        {"system": "Be brief."},
    ],
)
def test_counted_is_what_is_read(demo: LLM, fields: dict[str, Any]) -> None:
    whole = body(**fields)
    [request] = MessageAsk.of(whole).requests(demo)
    assert count(whole, demo) == len(request.prompt_ids)


def test_a_body_to_count_needs_no_max_tokens(demo: LLM) -> None:
    counted = parse_body(
        json.dumps({"model": "demo", "messages": [HI]}).encode(), CountBody, Limits()
    )
    assert count(counted, demo) == count(body(), demo)


def test_a_choice_of_a_tool_that_is_not_there_is_named(demo: LLM) -> None:
    asked = MessageAsk.of(body(tools=[CLOCK], tool_choice={"type": "tool", "name": "lamp"}))
    with pytest.raises(OptionError, match="lamp"):
        asked.requests(demo)
