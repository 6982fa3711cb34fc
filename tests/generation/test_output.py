"""Tokens to events: nothing lost, nothing leaked, whatever the tokens are cut like."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_qwen3.generation.loop import Token
from mlx_qwen3.generation.output import Event, Output, Usage
from mlx_qwen3.text.parser import StreamParser
from mlx_qwen3.text.stops import StopStrings
from mlx_qwen3.text.tokenizer import Tokenizer
from tests.fakes_model import PieceTokenizer

EOS = 10**6
CHAT: dict[str, Any] = {}
RAW = {"expect_thinking": False, "parse_tools": False}
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def write(
    pieces: Sequence[str],
    stops: Sequence[str] = (),
    *,
    reason: Any = "length",
    one_call: bool = False,
    **parser: Any,
) -> tuple[Output, list[Event]]:
    """Feed pieces as tokens until the output has ended, as Reply does."""
    tokenizer = PieceTokenizer()
    output = Output(
        tokenizer,  # type: ignore[arg-type]
        StreamParser(**parser),
        StopStrings(tuple(stops)),
        {EOS, EOS + 1},
        one_call=one_call,
    )
    events: list[Event] = []
    for token_id in tokenizer.ids(pieces):
        if output.finish_reason is not None:
            break
        events += output.add(Token(token_id))
    return output, events + output.finish(output.finish_reason or reason)


def said(events: Sequence[Event], kind: str) -> str:
    return "".join(event.text for event in events if event.kind == kind)


def cut(text: str, stops: Sequence[str]) -> tuple[str, int | None]:
    """The text before the stop that is complete first, and where that one ends."""
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, length = min(ends)
    return text[: end + length], end


# --- stop strings ------------------------------------------------------------------------

LETTERS = st.text("abc\n", max_size=4)
STOPS = st.lists(st.text("abc\n", min_size=1, max_size=4), min_size=1, max_size=3)


@settings(derandomize=True, max_examples=400)
@given(pieces=st.lists(LETTERS, max_size=12), stops=STOPS)
@example(pieces=["a", "b", "c", "a"], stops=["bc"])  # across tokens
@example(pieces=["abc"], stops=["c"])  # at the very end
@example(pieces=["ab", "ab", "abc"], stops=["ababc"])  # behind a false start
@example(pieces=["abca"], stops=["bca", "bc", "abca"])  # several, one inside another
@example(pieces=["ab"], stops=["abc"])  # never completed
def test_stop_strings_never_leak(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    expected, end = cut(text, stops)
    output, events = write(pieces, stops, **RAW)
    assert said(events, "answer") == output.text("answer") == expected
    assert output.finish_reason == ("length" if end is None else "stop")
    if end is not None:  # and it took no token more than needed
        before = "".join(pieces[: len(output.token_ids) - 1])
        assert len(before) < end <= len(before) + len(pieces[len(output.token_ids) - 1])


@settings(derandomize=True, max_examples=200)
@given(
    thinking=st.text("abc ", max_size=8),
    answer=st.text("abc", max_size=8),
    stops=STOPS,
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
@example(thinking="a abc b", answer="abc", stops=["abc"], cuts=[])
def test_stops_in_the_thinking_do_not_count(
    thinking: str, answer: str, stops: list[str], cuts: list[int]
) -> None:
    text = f"<think>\n{thinking}\n</think>\n\n{answer}"
    places = sorted({0, *(one for one in cuts if one < len(text)), len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    output, events = write(pieces, stops, **CHAT)
    assert said(events, "thinking") == thinking
    assert said(events, "answer") == cut(answer, stops)[0]
    assert output.text("answer") == said(events, "answer")


def test_text_after_a_stop_in_the_same_token_is_dropped() -> None:
    output, events = write(["hello STOP more", "and more"], ["STOP"])
    assert said(events, "answer") == "hello "
    assert len(output.token_ids) == 1
    output, events = write([f"hello STOP{CALL}"], ["STOP"])
    assert output.tool_calls == []
    assert (output.finish_reason, said(events, "answer")) == ("stop", "hello ")


def test_a_stop_in_text_held_back_to_the_end_is_a_stop() -> None:
    """The parser holds newlines back, which may belong to a tool call."""
    output, events = write(["one\n\n"], ["\n\n"])
    assert said(events, "answer") == "one"
    assert output.finish_reason == "stop"
    output, events = write(["one\n"], ["\n\n"])
    assert said(events, "answer") == "one\n"
    assert output.finish_reason == "length"


def test_text_held_for_a_stop_comes_before_a_tool_call() -> None:
    output, events = write([f"ab{CALL}", "ab"], ["abc"])
    assert [(event.kind, event.text) for event in events] == [
        ("answer", "ab"),
        ("tool_call", CALL),
        ("answer", "ab"),
    ]
    assert output.text("answer") == "abab"


# --- kinds and reasons -------------------------------------------------------------------


def test_thinking_answer_and_calls_in_order() -> None:
    text = f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
    output, events = write([text], reason="stop")
    kinds = [event.kind for event in events]
    assert kinds == ["thinking", "answer", "tool_call", "tool_call"]
    assert [call.name for call in output.tool_calls] == ["f", "f"]
    assert [event.tool_call for event in events[2:]] == output.tool_calls
    assert output.finish_reason == "tool_calls"


def test_calls_cut_by_the_length_end_by_length() -> None:
    output, _ = write([CALL, "and"], reason="length")
    assert output.finish_reason == "length"


def test_a_truncated_call_surfaces_as_text_and_warning() -> None:
    cut = '<tool_call>\n{"name": "f", "argum'
    output, events = write(["ok\n", cut])
    assert said(events, "answer") == output.text("answer") == f"ok\n{cut}"
    assert output.tool_calls == []
    (warning,) = output.warnings
    assert "its end is missing" in warning
    assert events[-1].warning == warning


def test_a_malformed_call_is_text_between_texts() -> None:
    broken = '<tool_call>\n{"name": "f", "arguments": {"x": 1]}\n</tool_call>'
    output, events = write([f"One.\n{broken}\nTwo.\n{CALL}"], reason="stop")
    assert said(events, "answer") == output.text("answer") == f"One.\n{broken}\nTwo."
    assert [call.arguments for call in output.tool_calls] == [{"x": 1}]
    assert len(output.warnings) == 1
    assert output.finish_reason == "tool_calls"
    output, _ = write([broken], reason="stop")
    assert (output.text("answer"), output.finish_reason) == (broken, "stop")


# --- calls as they grow ------------------------------------------------------------------


def test_a_call_streams_its_name_then_its_arguments() -> None:
    output, events = write(['<tool_call>\n{"name": "f', '", "arguments": ', '{"x": ', "1", "}}"])
    assert [(e.call.index, e.call.name, e.call.arguments) for e in events if e.call] == [
        (0, "f", ""),
        (0, "f", '{"x":'),
        (0, "f", " 1"),
        (0, "f", "}"),
        (0, "f", ""),
    ]
    assert [event.tool_call for event in events] == [None] * 4 + output.tool_calls
    assert [event.text for event in events[:-1]] == [""] * 4


def test_every_call_has_its_number() -> None:
    broken = '<tool_call>\n{"name": "g", "arguments": {"x": 1]}\n</tool_call>'
    text = f"{CALL}\n{broken}\n{CALL}"
    _, events = write(list(text), reason="stop")
    numbers = {(event.call.name, event.call.index) for event in events if event.call}
    assert numbers == {("f", 0), ("g", 1), ("f", 2)}
    _, events = write([text], reason="stop")  # at once: the broken one was never announced
    assert [(e.call.name, e.call.index) for e in events if e.call] == [("f", 0), ("f", 1)]


@pytest.mark.parametrize("tail", ["", "\n", "<", "</thi", "</think"])
def test_truncated_thinking_is_never_the_answer(tail: str) -> None:
    output, events = write(["<think>\n", "I wonder", tail])
    assert said(events, "answer") == output.text("answer") == ""
    assert said(events, "thinking").startswith("I wonder")


def test_raw_text_is_all_answer() -> None:
    text = f"<think>a</think>{CALL}"
    output, events = write([text], **RAW)
    assert said(events, "answer") == text
    assert output.tool_calls == []


@pytest.mark.parametrize("eos", [EOS, EOS + 1])
def test_every_end_token_ends_and_none_shows(eos: int) -> None:
    tokenizer = PieceTokenizer()
    output = Output(
        tokenizer,  # type: ignore[arg-type]
        StreamParser(),
        StopStrings(),
        {EOS, EOS + 1},
    )
    (hello,) = tokenizer.ids(["hello "])
    events = output.add(Token(hello)) + output.add(Token(eos))
    assert output.finish_reason == "stop"
    events += output.finish("stop")
    assert said(events, "answer") == "hello "
    assert output.token_ids == [hello, eos]


# --- the real tokenizer ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(checkpoint)


@settings(derandomize=True, max_examples=100)
@given(text=st.text(max_size=20), stop=st.text(min_size=1, max_size=3))
@example(text="naïve 你好 👩‍🚀!", stop="好 ")
@example(text="ends in half: é", stop="é")
def test_bytes_of_characters_are_never_split(text: str, stop: str, tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(text)
    output = Output(tokenizer, StreamParser(**RAW), StopStrings((stop,)), set())
    events: list[Event] = []
    for token_id in token_ids:
        if output.finish_reason is None:
            events += output.add(Token(token_id))
    events += output.finish(output.finish_reason or "length")
    assert said(events, "answer") == cut(tokenizer.decode(token_ids, True), [stop])[0]


def test_half_a_character_at_the_end_is_marked(tokenizer: Tokenizer) -> None:
    output = Output(tokenizer, StreamParser(), StopStrings(), set())
    events = [event for one in "né".encode()[:-1] for event in output.add(Token(one))]
    assert said(events, "answer") == "n"
    assert said(output.finish("length"), "answer") == "\ufffd"


def test_logprobs_are_spelled(tokenizer: Tokenizer) -> None:
    output = Output(tokenizer, StreamParser(), StopStrings(), {258})
    output.add(Token(104, -0.5, ((104, -0.5), (105, -1.5))))
    output.add(Token(258, -0.1, ()))
    first, last = output.logprobs
    assert (first.token_id, first.token, first.logprob) == (104, "h", -0.5)
    assert first.top == ((104, "h", -0.5), (105, "i", -1.5))
    assert (last.token, last.top) == ("<|im_end|>", ())


def test_events_bring_the_logprobs_of_the_answer(tokenizer: Tokenizer) -> None:
    """Tokens held back come with the event that gives them out; those of a thought never come."""
    output = Output(tokenizer, StreamParser(in_thinking=True), StopStrings(("hi!",)), {258})
    output.add(Token(104, -9.0), thinking=True)
    events = output.add(Token(260, -9.0), thinking=True)
    for place, letter in enumerate(b"nhi-"):
        events += output.add(Token(letter, -float(place)))
    output.add(Token(258, -9.0))
    events += output.finish("stop")
    found = [(event.text, [one.token for one in event.logprobs]) for event in events]
    assert found[-2:] == [("n", ["n"]), ("hi-", ["h", "i", "-"])]
    assert [one.logprob for event in events for one in event.logprobs] == [0, -1, -2, -3]


def test_one_call_is_the_last_thing_said() -> None:
    output, events = write([CALL[:20], CALL[20:] + "\n" + CALL + "more", "more"], one_call=True)
    assert [event.tool_call is None for event in events] == [False]
    assert (output.finish_reason, len(output.tool_calls)) == ("tool_calls", 1)


def test_usage_adds_up() -> None:
    usage = Usage(7, 5, 2)
    assert (usage.total_tokens, usage.answer_tokens) == (12, 3)
