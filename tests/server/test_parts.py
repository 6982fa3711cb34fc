"""Parts of a reply: where they begin and end, and what is said of calls that are still written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlx_qwen3.generation.output import CallDelta, Event, TokenLogprob
from mlx_qwen3.server.parts import Part, Parts
from mlx_qwen3.text.tool_calls import ToolCall
from tests.fakes import ends, says, thinks

WRITTEN = '{"a": 1}'


def grows(arguments: str, name: str = "add", index: int = 0) -> Event:
    return Event("tool_call", call=CallDelta(index, name, arguments))


def called(rest: str = "", name: str = "add", index: int = 0, **arguments: Any) -> Event:
    call = ToolCall(name, arguments, "<tool_call>")
    return Event("tool_call", "<tool_call>", call, call=CallDelta(index, name, rest))


def unreadable(text: str) -> Event:
    return Event("answer", text, warning="the call makes no sense")


def take(
    events: Sequence[Event], *, live: bool = False
) -> tuple[Parts, list[tuple[str, int, str]]]:
    """The parts, and what was said of them: (verb, which part, new text)."""
    parts = Parts(lambda kind: f"{kind}_id", lambda name: live)
    said = [
        (change.verb, change.part.index, change.text)
        for event in events
        for change in parts.take(event)
    ]
    return parts, said


def shapes(parts: Parts) -> list[tuple[str, str, bool]]:
    return [(part.kind, part.text, part.complete) for part in parts.all]


def test_a_part_ends_where_another_kind_begins() -> None:
    parts, said = take([thinks("a"), thinks("b"), says("c"), ends()])
    assert shapes(parts) == [("thinking", "ab", True), ("answer", "c", True)]
    assert said == [
        ("begin", 0, ""),
        ("grow", 0, "a"),
        ("grow", 0, "b"),
        ("end", 0, ""),
        ("begin", 1, ""),
        ("grow", 1, "c"),
        ("end", 1, ""),
    ]


def test_what_is_cut_off_is_not_complete() -> None:
    parts, _ = take([thinks("a"), says("b"), ends("length")])
    assert shapes(parts) == [("thinking", "a", True), ("answer", "b", False)]


def test_a_call_waits_until_it_can_be_read() -> None:
    events = [says("So:"), grows('{"a"'), grows(": 1"), called("}", a=1), ends("tool_calls")]
    parts, said = take(events)
    assert shapes(parts)[1] == ("call", WRITTEN, True)
    assert said[3:] == [("begin", 1, ""), ("grow", 1, WRITTEN), ("end", 1, "")]
    assert parts.all[1].call is not None
    assert (parts.all[1].name, parts.all[1].id) == ("add", "call_id")


def test_a_live_call_goes_out_as_it_is_written() -> None:
    parts, said = take([grows('{"a"'), grows(": 1"), called("}", a=1), ends()], live=True)
    assert shapes(parts) == [("call", WRITTEN, True)]
    assert [text for verb, _, text in said if verb == "grow"] == ['{"a"', ": 1", "}"]


def test_a_live_call_that_comes_at_once_has_its_arguments_once() -> None:
    parts, said = take([called(WRITTEN, a=1), ends()], live=True)
    assert shapes(parts) == [("call", WRITTEN, True)]
    assert len(said) == 3


def test_two_calls_are_two_parts() -> None:
    events = [grows("{"), called("}"), grows("{", index=1), called("}", index=1), ends()]
    for live in (False, True):
        parts, _ = take(events, live=live)
        assert shapes(parts) == [("call", "{}", True), ("call", "{}", True)]


def test_an_unreadable_call_is_text() -> None:
    parts, _ = take([says("a"), grows('{"a": oh'), unreadable("\n<tool_call>"), says("b"), ends()])
    assert shapes(parts) == [("answer", "a\n<tool_call>b", True)]


def test_an_unreadable_live_call_is_told_once_and_not_again_as_text() -> None:
    parts, _ = take([grows('{"a": '), unreadable("<tool_call>"), ends("length")], live=True)
    assert shapes(parts) == [("call", '{"a": ', False)]
    assert parts.all[0].call is None


def test_a_reply_without_events_has_no_parts() -> None:
    parts, said = take([ends()])
    assert (parts.all, said) == ([], [])
    assert parts.completion is not None


def test_open_parts_are_not_among_the_closed() -> None:
    parts, _ = take([thinks("a"), says("b")])
    assert [part.kind for part in parts.closed] == ["thinking"]


def test_logprobs_stay_with_the_text_of_their_tokens() -> None:
    one, two = TokenLogprob(1, "a", -0.5), TokenLogprob(2, "b", -0.25)
    events = [replace(says("a"), logprobs=(one,)), replace(says("b"), logprobs=(two,)), ends()]
    parts, _ = take(events)
    part: Part = parts.all[0]
    assert part.logprobs == [one, two]
