"""Pace: proposals are as long as they pay, and stop when they do not."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_qwen3.device import Blas, Device
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.model.policy import BurstPolicy

CERTAIN = [0.95 ** (index + 1) for index in range(31)]


def flat(cost: float) -> Pace:
    return Pace(lambda rows: cost, 32)


def run(pace: Pace, rows: int, cost: float, tokens: int, plain: int = 40) -> None:
    """Some plain steps of a second, then a burst."""
    for _ in range(plain):
        pace.note_plain(1.0, 0.0)
    pace.note_burst(rows, tokens, cost, 0.0)


def test_long_proposals_where_rows_are_free_and_short_ones_where_they_are_not() -> None:
    assert flat(1.0).best(CERTAIN) == 31
    assert flat(4.0).best(CERTAIN) == 31
    steep = Pace(lambda rows: 1 + 0.35 * (rows - 1), 32)
    assert 1 <= steep.best(CERTAIN) <= 7
    assert Pace(lambda rows: float(rows), 32).best(CERTAIN) == 0
    assert flat(1.0).best([0.1, 0.01]) == 0
    assert flat(1.0).best([]) == 0


def test_never_more_than_max_rows() -> None:
    assert Pace(lambda rows: 1.0, 8).best(CERTAIN) == 7
    assert Pace(lambda rows: 1.0, 1).best(CERTAIN) == 0


def test_costs_are_measured_and_outliers_forgiven() -> None:
    pace = flat(4.0)
    for cost in (2.0, 2.0, 50.0, 2.0, 2.0):
        run(pace, 16, cost, 17)
    assert pace.cost(16) == 2.0
    assert pace.cost(2) == 4.0  # not measured


def test_losses_are_limited_to_a_small_share() -> None:
    """However often it is tried: nothing is ever accepted, and a burst costs four steps."""
    pace, plain, lost = flat(4.0), 0, 0.0
    for _ in range(20_000):
        pace.note_plain(1.0, 0.0)
        plain += 1
        if pace.best(CERTAIN):
            pace.note_burst(32, 1, 4.0, 0.0)
            lost += 3.0
    assert lost > 0
    assert lost / (plain + lost) < 0.02


def test_a_slow_burst_is_tried_again_some_day() -> None:
    pace = flat(3.0)
    run(pace, 32, 30.0, 1)
    assert pace.cost(32) == 30.0
    assert pace.best(CERTAIN) == 0
    steps = 0
    while not pace.best(CERTAIN):
        pace.note_plain(1.0, 0.0)
        steps += 1
        assert steps < 10_000
    assert steps > 200


def test_a_slow_caller_spoils_no_measurement() -> None:
    pace = flat(4.0)
    for _ in range(40):
        pace.note_plain(1.0, 0.0)
        pace.note_plain(30.0, 29.0)
    pace.note_burst(16, 17, 90.0, 88.0)
    assert pace.cost(16) == 4.0
    pace.note_burst(16, 17, 3.0, 0.0)
    assert pace.cost(16) == pytest.approx(3.0)


def device(backend: Any) -> Device:
    return Device(backend, "chip", 1 << 34, 1 << 34, None, Blas("OpenBLAS", "loaded"))


@pytest.mark.parametrize(("group", "rows"), [(1, 8), (2, 8), (4, 8), (5, 6), (8, 4), (16, 2)])
def test_metal_bursts_stay_within_the_vector_kernels(group: int, rows: int) -> None:
    policy = BurstPolicy.for_device(device("metal"), mx.bfloat16, group)
    assert (policy.max_rows, policy.tolerance) == (rows, 0.0)


def test_cuda_never_bursts() -> None:
    assert BurstPolicy.for_device(device("cuda"), mx.bfloat16, 2).max_rows < 2


def test_costs_to_expect_are_interpolated() -> None:
    policy = BurstPolicy(32, costs=((1, 1.0), (3, 3.0), (32, 6.0)))
    assert [policy.expected_cost(rows) for rows in (1, 2, 3, 32, 40)] == [1.0, 2.0, 3.0, 6.0, 6.0]
