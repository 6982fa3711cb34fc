"""The thinking meter: counts to the token, and agrees with the parser about where thinking ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.generation.thinking import EARLY_STOP, ThinkingMeter
from mlx_qwen3.text.parser import StreamParser
from mlx_qwen3.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(checkpoint)


def metered(
    tokenizer: Tokenizer,
    text: str | list[int],
    *,
    in_thinking: bool = False,
    expect_thinking: bool = True,
    budget: int | None = None,
) -> ThinkingMeter:
    meter = ThinkingMeter(
        tokenizer, in_thinking=in_thinking, expect_thinking=expect_thinking, budget=budget
    )
    for token_id in tokenizer.encode(text) if isinstance(text, str) else text:
        meter.add(token_id)
    return meter


@pytest.mark.parametrize(
    ("text", "in_thinking", "tokens"),
    [
        ("", False, 0),
        ("", True, 0),
        ("answer", False, 0),
        ("<think>", False, 1),
        ("<think>abc", False, 4),
        ("<think>abc</think>", False, 5),
        ("<think>abc</think>\n\nanswer", False, 5),
        ("\n\n<think>abc</think>answer", False, 7),  # the parser takes it as thinking, too
        ("abc</think>answer", True, 4),
        ("<think>abc</think>answer", True, 5),
        ("answer <think>abc", False, 0),
        ("<think>a</think>b<think>c", False, 3),
        ("</think>answer", False, 0),
    ],
)
def test_it_counts_the_tags_and_what_is_between(
    text: str, in_thinking: bool, tokens: int, tokenizer: Tokenizer
) -> None:
    assert metered(tokenizer, text, in_thinking=in_thinking).tokens == tokens


@pytest.mark.parametrize("opening", ["<think>", "spelled"])
@pytest.mark.parametrize("closing", ["</think>", "spelled"])
def test_tags_that_are_spelled_out_count_as_tags(
    opening: str, closing: str, tokenizer: Tokenizer
) -> None:
    """The parser reads text; a budget that read ids would cut an answer in two."""
    ids = list(b"<think>") if opening == "spelled" else tokenizer.encode("<think>")
    ids += list(b"hm")
    ids += list(b"</think>") if closing == "spelled" else tokenizer.encode("</think>")
    meter = metered(tokenizer, ids + list(b"answer"), budget=len(ids) + 1)
    assert meter.tokens == len(ids)
    assert meter.early_stop() == []


def test_the_early_stop_is_due_at_the_budget(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<think>abcdef")
    stop = tokenizer.encode(EARLY_STOP)
    assert [metered(tokenizer, ids[:n], budget=3).early_stop() == stop for n in range(6)] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert metered(tokenizer, ids).early_stop() == []


def test_the_early_stop_ends_the_thinking(tokenizer: Tokenizer) -> None:
    stop = tokenizer.encode(EARLY_STOP)
    meter = metered(tokenizer, [*tokenizer.encode("<think>abc"), *stop], budget=4)
    assert meter.early_stop() == []
    newlines = 2  # behind the closing tag
    assert meter.tokens == 4 + len(stop) - newlines


@pytest.mark.parametrize("budget", [0, 1])
def test_a_thought_opened_by_the_prompt_may_end_at_once(budget: int, tokenizer: Tokenizer) -> None:
    assert bool(metered(tokenizer, "", in_thinking=True, budget=budget).early_stop()) == (
        budget == 0
    )
    assert metered(tokenizer, "a", in_thinking=True, budget=budget).early_stop()


def test_raw_text_has_no_thinking(tokenizer: Tokenizer) -> None:
    meter = metered(tokenizer, "<think>abc", expect_thinking=False, budget=1)
    assert meter.tokens == 0
    assert meter.early_stop() == []


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</thi", "nk>", "a", "\n", " ", "é"])
)


@settings(derandomize=True, max_examples=300)
@given(pieces=PIECES, in_thinking=st.booleans())
def test_it_agrees_with_the_parser(
    pieces: list[str], in_thinking: bool, tokenizer: Tokenizer
) -> None:
    """Whether a word after this text is thinking: both give the same answer."""
    text = "".join(pieces)
    parser = StreamParser(in_thinking=in_thinking, parse_tools=False)
    parser.feed(text)
    kinds = {piece.kind for piece in parser.feed("Z") + parser.finish() if "Z" in piece.text}
    meter = metered(tokenizer, text + "Z", in_thinking=in_thinking, budget=0)
    assert bool(meter.early_stop()) == (kinds == {"thinking"})
