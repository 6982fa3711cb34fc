"""Lookup: what is foreseen, against a search through everything, and how it learns."""

from __future__ import annotations

from random import Random

import pytest

from mlx_qwen3.generation.lookup import Habits, Lookup


def longest_match(token_ids: list[int], place: int) -> int:
    length = 0
    while length < place and token_ids[place - 1 - length] == token_ids[-1 - length]:
        length += 1
    return length


@pytest.mark.parametrize("seed", range(5))
def test_a_match_is_the_longest_repetition_there_is(seed: int) -> None:
    """Of the latest eight places of the last two tokens: against a search through everything."""
    rng = Random(seed)
    token_ids = [rng.randrange(4) for _ in range(150)]
    for length in range(2, 150):
        part = token_ids[:length]
        lookup = Lookup(Habits())
        lookup.read(part)
        places = [one for one in range(2, length) if part[one - 2 : one] == part[-2:]][-8:]
        assert lookup.match == max((longest_match(part, one) for one in places), default=0)
        if lookup.match:
            assert longest_match(part, lookup._next) == lookup.match
            assert lookup.foreseen(0, 1) == [part[lookup._next]]
            assert lookup.survival(0, 4)


def test_the_longest_of_several_places_is_followed() -> None:
    lookup = Lookup(Habits())
    lookup.read([1, 2, 3, 4, 50, 9, 3, 4, 60, 1, 2])
    lookup.extend([3, 4])  # after 1 2 3 4: not what followed the more recent 3 4
    assert lookup.foreseen(0, 2) == [50, 9]
    assert lookup.match == 4


def test_a_repetition_repeats_itself() -> None:
    lookup = Lookup(Habits())
    lookup.read([7, 8, 9, 7, 8])
    assert lookup.foreseen(0, 8) == [9, 7, 8, 9, 7, 8, 9, 7]
    assert lookup.foreseen(1, 3) == [7, 8, 9]


def test_a_copy_goes_on_behind_a_changed_word() -> None:
    lookup = Lookup(Habits())
    lookup.read([*range(100, 120), 1])
    lookup.extend([100, 101, 102, 103, 104, 105])
    assert lookup.foreseen(0, 2) == [106, 107]
    lookup.extend([55, 56])  # in place of 106
    assert lookup.match == 0
    lookup.extend([107])
    assert lookup.foreseen(0, 3) == [108, 109, 110]


@pytest.mark.parametrize("seed", range(5))
def test_retracting_equals_never_having_seen(seed: int) -> None:
    rng = Random(seed)
    one, other = Lookup(Habits()), Lookup(Habits())
    token_ids = [rng.randrange(5) for _ in range(60)]
    for lookup in (one, other):
        lookup.read(token_ids)
    one.extend([rng.randrange(5) for _ in range(20)])
    one.retract(20)
    assert one._last == other._last
    assert one._earlier == other._earlier
    assert (one._tokens, one.match) == (other._tokens, other.match)
    one.extend(token_ids[:10])
    other.extend(token_ids[:10])
    assert one.foreseen(0, 5) == other.foreseen(0, 5)


def test_nothing_repeats_nothing_is_foreseen() -> None:
    lookup = Lookup(Habits())
    lookup.read(range(50))
    assert (lookup.match, lookup.survival(0, 8)) == (0, [])
    lookup.extend([99, 98])
    assert lookup.survival(0, 8) == []


def test_habits_follow_what_happens() -> None:
    habits = Habits()
    first = habits.survival(4, False, 0, 3)
    assert first == sorted(first, reverse=True)
    for _ in range(50):
        habits.note(4, False, False)
    assert habits.survival(4, False, 0, 3)[0] < 0.2 < first[0]
    assert habits.survival(4, True, 0, 3)[0] > 0.5  # copies of what was read are another matter


def test_one_reply_learns_faster_than_all() -> None:
    shared = Habits()
    own = Habits(shared)
    for _ in range(10):
        own.note(2, True, False)
    assert own.rates()[8] < shared.rates()[8] < Habits().rates()[8]
    assert Habits(shared).rates()[8] == pytest.approx(shared.rates()[8])
