"""Turns, medians and ratios, with runners whose every turn is noted."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen3.bench.graph import Kernels
from mlx_qwen3.bench.measure import PROBE, Length, Plan, StepRun, Turn, fit, prompt_ids, take_turns
from mlx_qwen3.bench.plot import draw
from mlx_qwen3.bench.report import Report, as_dict, run
from mlx_qwen3.bench.roofline import Weights, describe_weights, measure_bandwidth
from mlx_qwen3.bench.runner import (
    STEPS,
    OwnRunner,
    named_arrays,
)
from mlx_qwen3.bench.shapes import shape_config, write_checkpoint
from mlx_qwen3.bench.stats import Spread
from mlx_qwen3.bench.table import reductions, seconds_text, table
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.weights import load_model
from mlx_qwen3.releases import find

CONFIG = ModelConfig.from_dict(shape_config(find("0.6b").release, layers=1, hidden=64, vocab=300))
PLAN = Plan((Length(8, 3), Length(16, 3)), rounds=2, slow_seconds=60, config=CONFIG)


class NotedRunner:
    """Writes down what is asked of it; its tokens and steps are nothing but small sums."""

    def __init__(self, name: str, notes: list[str], *, slow: bool = False) -> None:
        self.name = name
        self.slow = slow
        self.asked: list[tuple[int, int]] = []
        self._notes = notes

    def load(self) -> None:
        self._notes.append(f"{self.name} loads")

    def unload(self) -> None:
        self._notes.append(f"{self.name} unloads")

    def parameters(self) -> dict[str, mx.array]:
        return {"model.norm.weight": mx.ones((64,))}

    def generate(self, token_ids: Sequence[int], count: int) -> Iterator[int]:
        self.asked.append((len(token_ids), count))
        yield from range(count)

    def land(self) -> None:
        """Nothing is ahead."""

    def kv_bytes(self, tokens: int) -> int:
        return 100 * tokens

    def expert_traffic(self) -> None:
        """All in memory."""

    def kernels(self) -> Kernels:
        return Kernels(20, 15, 1)


def nothing(done: int, total: int) -> None:
    """Nobody watches."""


def test_sides_take_turns_and_only_one_is_in_memory() -> None:
    notes: list[str] = []
    sides = [NotedRunner("a", notes), NotedRunner("b", notes)]
    seen: list[tuple[int, int]] = []
    turns = take_turns(sides, PLAN, lambda done, total: seen.append((done, total)))
    assert notes == ["a loads", "a unloads", "b loads", "b unloads"] * (1 + PLAN.rounds)
    assert seen == [(done, 6) for done in range(1, 7)]
    assert [len(one.turns) for one in turns] == [2, 2]
    probes = [(PROBE, 1)] * 2
    cold, first = sides[0].asked[:3], sides[0].asked[3:8]
    assert cold[:2] == first[:2] == probes
    assert set(first[3:]) == {(8, 4), (16, 4)}


def test_a_length_a_slow_runner_gets_twice_is_run_once() -> None:
    slow = NotedRunner("slow", [], slow=True)
    turns = take_turns([slow], replace(PLAN, rounds=1, slow_seconds=0), nothing)
    assert turns[0].lengths == (Length(PROBE, 2),) * 2
    assert slow.asked.count((PROBE, 3)) == 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1000, ((8, 3), (16, 3))),  # time enough
        (2, ((4, 3), (4, 3))),  # a token a second: never less than the probe
        (20, ((8, 3), (10, 3))),
        (0.1, ((4, 2), (4, 2))),
    ],
)
def test_a_slow_runner_gets_what_it_can_do(
    seconds: float, expected: tuple[tuple[int, int], ...]
) -> None:
    cold = Turn(
        weights=Weights(1, 1, "float32"),
        load=1,
        load_peak=1,
        first_token=9,
        warm_first_token=float(PROBE),
        steps=(StepRun(0.02, 0.2),),
        lengths=(),
        kv_bytes=(),
    )
    lengths = fit(replace(PLAN, slow_seconds=seconds), cold)
    assert lengths == tuple(Length(*one) for one in expected)


def test_prompts_are_the_same_for_all_and_within_the_vocabulary() -> None:
    ids = prompt_ids(500, 300)
    assert ids == prompt_ids(500, 300)
    assert 0 <= min(ids) < 10
    assert 290 < max(ids) < 300


def test_a_ratio_is_that_of_each_round() -> None:
    assert Spread.of_ratios([2, 40, 6], [1, 10, 3]) == Spread(2, 2, 4, 3)


def test_a_step_is_split_into_host_and_device() -> None:
    assert StepRun(0.75, 1.0).device == 0.25
    assert StepRun(1.25, 1.0).device == 0.0  # clocks of different kinds may disagree a little


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(1.234, 1.2, 12.5, 5), "1.23 s (1.20 to 12.5)"),
        (Spread(0.01234, 0.01, 1.5, 5), "12.3 ms (10.0 to 1500)"),
        (Spread(0.0001, 0.0001, 0.0001, 1), "0.100 ms"),
        (Spread(123.4, 100, 123.4, 2), "123 s (100 to 123)"),
    ],
)
def test_numbers_have_three_digits(spread: Spread, text: str) -> None:
    assert seconds_text(spread) == text


def test_what_a_mixture_of_experts_reads_per_token(tmp_path: Path) -> None:
    """Every weight but the experts not chosen and the rows of the embedding not looked up."""
    raw = shape_config(find("30b-a3b").release, layers=2, hidden=64, vocab=300)
    config = ModelConfig.from_dict(raw)
    model = load_model(write_checkpoint(raw, 32, tmp_path), dtype="float32")
    weights = describe_weights(named_arrays(model.parameters()), config)
    experts = 2 * 128 * 3 * 64 * 64 * 4  # layers, experts, matrices of 64 x 64 float32
    embedding = 300 * 64 * 4
    assert weights.dtype == "float32"
    assert weights.nbytes - weights.read == experts * 120 // 128 + embedding * 299 // 300


def test_memory_is_read_at_some_speed() -> None:
    found = measure_bandwidth(1 << 20)
    assert found.buffer_bytes == 1 << 20
    assert found.bytes_per_second > 1e7
    assert found.passed_by in ("sum", "matrix times vector", "copy")


@pytest.fixture(scope="module")
def report() -> Report:
    notes: list[str] = []
    sides = [NotedRunner("fast", notes), NotedRunner("peer", notes, slow=True)]
    return run(sides, replace(PLAN, slow_seconds=0), nothing)


def test_less_is_never_given_in_silence(report: Report) -> None:
    said = list(reductions(report))
    assert len(said) == 2
    assert "peer" in said[0]
    assert "4 tokens instead of 8" in said[0]
    assert "2 instead of 3" in said[0]
    lengths = as_dict(report)["sides"]["peer"]["lengths"]
    assert (lengths[1]["prompt_tokens"], lengths[1]["asked_prompt_tokens"]) == (4, 16)
    assert "first_token_seconds" not in as_dict(report)["ratios"][0]["lengths"][1]


def test_the_share_of_the_bandwidth(report: Report) -> None:
    side = report.sides[0]
    length = side.lengths[0]
    assert length.kv_bytes == 100 * 11
    assert length.read == 64 * 4 + 100 * 9.5
    rate = Spread.of(length.values["decode_tokens_per_second"]).median
    memory = report.bandwidth.bytes_per_second
    assert report.bandwidth_share(side, 0) == pytest.approx(length.read * rate / memory)


def test_rows_are_all_as_long(report: Report) -> None:
    rows = list(table(report))
    assert {len(row) for row in rows} == {4}
    assert "4 read, 2 written" in next(row for row in rows if row[0].startswith("8 tokens"))[2]


def test_the_picture_is_svg_and_names_the_sides(report: Report) -> None:
    picture = draw(report, "a <model>")
    root = ElementTree.fromstring(picture)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <model>", "fast", "peer", "Prefill, tokens/s"} <= set(words)
    assert picture.count("<circle") == 2 + 2 * (2 + 1)  # legend; two panels, the peer's once


def test_the_runner_of_this_package(tmp_path: Path) -> None:
    raw = shape_config(find("0.6b").release, layers=2, hidden=64, vocab=300)
    folder = write_checkpoint(raw, 4, tmp_path)
    runner = OwnRunner(folder)
    with pytest.raises(RuntimeError, match="load"):
        runner.parameters()
    runner.load()
    assert list(runner.generate([1, 2, 3], 6)) == list(runner.generate([1, 2, 3], 6))
    assert runner.kv_bytes(10) == 2 * 2 * 1 * 128 * 10 * 4  # k and v, layers, heads, float32
    runner.unload()
    with pytest.raises(RuntimeError, match="load"):
        runner.kv_bytes(10)


def test_both_forms_of_a_step_say_the_same(checkpoint: Path) -> None:
    said = []
    for form in STEPS:
        runner = OwnRunner(checkpoint, step=form)
        runner.load()
        said.append(list(runner.generate([1, 2, 3], 6)))
        assert (runner.kernels() is None) == (form == "compiled")
    assert said[0] == said[1]
