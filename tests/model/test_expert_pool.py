"""Which experts are in memory: the least recently used one goes."""

from __future__ import annotations

from random import Random

import pytest

from mlx_qwen3.model.expert_pool import SlotTable


def test_slots_are_filled_then_the_least_recently_used_goes() -> None:
    table = SlotTable(3)
    first = table.take([4, 5, 6])
    assert sorted(first.values()) == [0, 1, 2]
    assert table.take([4]) == {}
    assert table.take([9]) == {9: first[5]}
    assert table.take([4, 6]) == {}
    assert table.take([5, 6]) == {5: first[5]}  # 9 had not been used since


def test_what_was_not_read_is_not_here() -> None:
    table = SlotTable(2)
    table.take([1, 2])
    missing = table.take([2, 3])
    table.forget(list(missing))
    assert table.take([2, 3]) == missing
    assert table.take([1]) != {}


def test_order_of_waves() -> None:
    table = SlotTable(4)
    table.take([1, 2, 3, 4])
    table.take([2])
    assert table.in_order([1, 2, 3, 7, 8]) == [1, 3, 2, 7, 8]


@pytest.mark.parametrize("slots", [2, 3, 5, 8])
def test_a_wave_never_takes_the_slots_of_the_one_before(slots: int) -> None:
    """It may still be computing while the next one is read."""
    rng = Random(slots)
    table = SlotTable(slots)
    for _ in range(200):
        wanted = rng.sample(range(20), rng.randint(slots + 1, 20))
        ordered, size = table.in_order(wanted), slots // 2
        assert sorted(ordered) == sorted(wanted)
        before: set[int] = set()
        for start in range(0, len(ordered), size):
            wave = ordered[start : start + size]
            written = set(table.take(wave).values())
            assert not written & before
            before = {table.slot(expert) for expert in wave}
            assert len(before) == len(wave)
