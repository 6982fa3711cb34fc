"""Stop strings: the same however the text is cut, and nothing of a stop gets out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen3.errors import OptionError
from mlx_qwen3.text import StopStrings
from tests.text.splits import repeatable, split


def run(stops: list[str], parts: list[str]) -> tuple[str, str | None]:
    stream = StopStrings(stops)
    said, hit = "", None
    for part in parts:
        safe, hit = stream.feed(part)
        said += safe
    return said + stream.finish(), hit


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    """What a reader of the whole text sees: read on until it ends with a stop."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            hit = max(hits, key=len)
            return text[: end - len(hit)], hit
    return text, None


@repeatable
@given(
    text=st.text("ab<", max_size=30),
    stops=st.lists(st.text("ab<", min_size=1, max_size=5), max_size=3),
    seed=st.integers(0, 99),
)
def test_any_split_gives_the_same(text: str, stops: list[str], seed: int) -> None:
    want = expected(stops, text)
    assert run(stops, [text]) == want
    assert run(stops, list(text)) == want
    assert run(stops, list(split(text, random.Random(seed)))) == want


@pytest.mark.parametrize(
    ("stops", "said"),
    [(["abcd", "bc"], ("xa", "bc")), (["abc", "bc"], ("x", "abc")), (["ab", "abc"], ("x", "ab"))],
)
def test_the_stop_that_is_complete_first(stops: list[str], said: tuple[str, str]) -> None:
    assert run(stops, ["xabcde"]) == run(stops, list("xabcde")) == said


def test_a_partial_match_is_held_back() -> None:
    stream = StopStrings(["END"])
    assert stream.feed("the E") == ("the ", None)
    assert stream.feed("N") == ("", None)
    assert stream.feed("TRY E") == ("ENTRY ", None)
    assert stream.feed("NDless") == ("", "END")
    assert stream.feed("more") == ("", "END")
    assert stream.finish() == ""


def test_a_partial_match_at_the_end_is_text() -> None:
    stream = StopStrings(["\n\n"])
    assert stream.feed("a\n") == ("a", None)
    assert stream.finish() == "\n"


def test_no_stops_pass_everything_on() -> None:
    stream = StopStrings([])
    assert stream.feed("a\n") == ("a\n", None)
    assert stream.finish() == ""


def test_one_string_is_one_stop() -> None:
    assert StopStrings("ab").feed("b, a, ab") == ("b, a, ", "ab")


@pytest.mark.parametrize("stops", [[""], ["a", ""], "", [None]])
def test_empty_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(OptionError, match="empty or non-text"):
        StopStrings(stops)
