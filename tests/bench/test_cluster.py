"""The estimate of a token's time, against what a ring does, counted by hand."""

from __future__ import annotations

import pytest

from mlx_qwen3.bench.cluster import Link, Work
from mlx_qwen3.model.peers import PeerTraffic
from mlx_qwen3.releases import SIZES

NO_LATENCY = Link(0.0, 1.0)  # seconds are bytes then
NO_BYTES = Link(1.0, float("inf"))  # and rounds here
WORK = Work(layers=3, hidden_size=64, vocab_size=288, active_bytes=1e6, float_bytes=4)


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_messages_take_as_long_as_their_bytes(hosts: int) -> None:
    traffic = PeerTraffic(reduced=7 * 64 * 4 + 4, gathered=288 // hosts * 4)
    assert WORK.tensor_messages(hosts, NO_LATENCY) == pytest.approx(traffic.wire_bytes(hosts))


@pytest.mark.parametrize(("hosts", "rounds"), [(1, 0), (2, 8 + 1), (4, 8 * 6 + 3)])
def test_every_round_waits(hosts: int, rounds: int) -> None:
    assert WORK.tensor_messages(hosts, NO_BYTES) == rounds


@pytest.mark.parametrize(("hosts", "rounds"), [(1, 0), (2, 1 + 1), (4, 3 + 6)])
def test_a_pipeline_waits_once_a_stage(hosts: int, rounds: int) -> None:
    assert WORK.pipeline_messages(hosts, NO_BYTES) == rounds


def test_tensor_parallel_divides_the_reading_and_a_pipeline_does_not() -> None:
    instant = Link(0.0, float("inf"))
    assert WORK.tensor(4, instant, 1e6) == 0.25
    assert WORK.pipeline(4, instant, 1e6) == 1.0


def test_a_sparse_release_reads_its_active_weights_only() -> None:
    work = Work.of(SIZES["30B-A3B"], "4bit")
    assert 1.5e9 < work.active_bytes < 2.1e9
