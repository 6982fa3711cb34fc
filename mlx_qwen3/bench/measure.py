"""Runners taking turns: load, first token, single steps, then every prompt length.

A turn starts with loading and ends with unloading, so that only one model is in memory and its
peak is its own. Round 0 is cold (the first work of its kind in this process) and is reported
apart; its timings also tell how much a slow runner can be asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_qwen3.bench.roofline import Weights, describe_weights
from mlx_qwen3.bench.runner import Runner
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.experts import ExpertTraffic

Progress = Callable[[int, int], None]

PROBE = 4  # tokens of the prompt that cold and warm first tokens are measured with
_STEPS = 16  # single steps per turn
_STEP_SECONDS = 5.0  # and how long they may take together
_FEWEST = 2  # tokens decoded, and single steps taken, at least


@dataclass(frozen=True)
class Length:
    """prompt: tokens read; tokens: decoded behind them, the first one not counted."""

    prompt: int
    tokens: int


@dataclass(frozen=True)
class Plan:
    """What to measure. slow_seconds: what one length of a slow runner may take per round."""

    lengths: tuple[Length, ...]
    rounds: int
    slow_seconds: float
    config: ModelConfig


@dataclass(frozen=True)
class LengthRun:
    """Seconds to the first token and of all further ones; most bytes in use in either part.

    traffic: of streamed experts behind the first token, where they are streamed.
    """

    length: Length
    first_token: float
    decode: float
    prefill_peak: int
    decode_peak: int
    traffic: ExpertTraffic | None = None


@dataclass(frozen=True)
class StepRun:
    """One step of the generation loop, not overlapped with another, in seconds.

    host: what the host's thread works to build the graph and hand it over. While it is held up
    because the device has enough to do, it does not work. total: by the clock.
    """

    host: float
    total: float

    @property
    def device(self) -> float:
        """What the host does not account for."""
        return max(self.total - self.host, 0.0)


@dataclass(frozen=True)
class Turn:
    """load, first_token (right after it), warm_first_token: seconds; load_peak: bytes.

    kv_bytes: keys and values that attending to the whole of each length reads.
    """

    weights: Weights
    load: float
    load_peak: int
    first_token: float
    warm_first_token: float
    steps: tuple[StepRun, ...]
    lengths: tuple[LengthRun, ...]
    kv_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Turns:
    """All turns of one runner. lengths: those it was given, in the order of the plan's."""

    runner: Runner
    lengths: tuple[Length, ...]
    cold: Turn
    turns: tuple[Turn, ...]


def take_turns(runners: Sequence[Runner], plan: Plan, progress: Progress) -> list[Turns]:
    """A cold turn each, then `plan.rounds` rounds of one full turn each.

    progress: called with (turns done, turns in all).
    """
    total = len(runners) * (plan.rounds + 1)
    cold: list[Turn] = []
    for runner in runners:
        cold.append(_turn(runner, (), plan.config))
        progress(len(cold), total)
    lengths = [
        fit(plan, turn) if runner.slow else plan.lengths
        for runner, turn in zip(runners, cold, strict=True)
    ]
    turns: list[list[Turn]] = [[] for _ in runners]
    for done in range(plan.rounds):
        for index, runner in enumerate(runners):
            turns[index].append(_turn(runner, lengths[index], plan.config))
            progress(len(runners) * (done + 1) + index + 1, total)
    parts = zip(runners, lengths, cold, map(tuple, turns), strict=True)
    return [Turns(*part) for part in parts]


def fit(plan: Plan, cold: Turn) -> tuple[Length, ...]:
    """Lengths that a slow runner gets through in the plan's time: half to read, half to write."""
    half = plan.slow_seconds / 2
    prompt = max(PROBE, int(half * PROBE / cold.warm_first_token))
    tokens = max(_FEWEST, int(half / cold.steps[-1].total))
    return tuple(
        replace(one, prompt=min(one.prompt, prompt), tokens=min(one.tokens, tokens))
        for one in plan.lengths
    )


def _turn(runner: Runner, lengths: tuple[Length, ...], config: ModelConfig) -> Turn:
    mx.reset_peak_memory()
    load = _seconds(runner.load)
    load_peak = mx.get_peak_memory()
    probe = prompt_ids(PROBE, config.vocab_size)
    first, warm = (_run(runner, Length(PROBE, 0), probe).first_token for _ in range(2))
    steps = _single_steps(runner, probe, seconds=_STEP_SECONDS if lengths else 0)
    # A length that a slow runner got twice is run once.
    runs = {
        one: _run(runner, one, prompt_ids(one.prompt, config.vocab_size)) for one in set(lengths)
    }
    turn = Turn(
        weights=describe_weights(runner.parameters(), config),
        load=load,
        load_peak=load_peak,
        first_token=first,
        warm_first_token=warm,
        steps=steps,
        lengths=tuple(runs[one] for one in lengths),
        kv_bytes=tuple(runner.kv_bytes(one.prompt + one.tokens) for one in lengths),
    )
    runner.unload()
    return turn


def prompt_ids(count: int, vocab_size: int) -> list[int]:
    """The same pseudo-random tokens for every runner: they spread over a model's experts."""
    ids: list[int] = np.random.default_rng(0).integers(0, vocab_size, count).tolist()
    return ids


def _run(runner: Runner, length: Length, prompt: Sequence[int]) -> LengthRun:
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    times, peaks, traffic = [], [], []
    for _ in runner.generate(prompt, length.tokens + 1):
        times.append(time.perf_counter())
        if len(times) == 1:
            traffic.append(runner.expert_traffic())
            peaks.append(mx.get_peak_memory())
            mx.reset_peak_memory()
    peaks.append(mx.get_peak_memory())
    behind, now = traffic[0], runner.expert_traffic()
    read = None if behind is None or now is None else now - behind
    first, decode = times[0] - start, times[-1] - times[0]
    prefill_peak, decode_peak = peaks
    return LengthRun(length, first, decode, prefill_peak, decode_peak, read)


def _single_steps(runner: Runner, prompt: Sequence[int], *, seconds: float) -> tuple[StepRun, ...]:
    """Up to _STEPS of them within about `seconds`, behind one that warms up."""
    tokens = runner.generate(prompt, _STEPS + 2)
    next(tokens), next(tokens)
    runs: list[StepRun] = []
    start = time.perf_counter()
    while len(runs) < _FEWEST or (len(runs) < _STEPS and time.perf_counter() - start < seconds):
        runs.append(_single_step(runner, tokens))
    return tuple(runs)


def _single_step(runner: Runner, tokens: Iterator[int]) -> StepRun:
    """The loop is one step ahead: that one has landed, so `next` only builds and hands over."""
    runner.land()
    began, start = time.perf_counter(), time.thread_time()
    next(tokens)
    host = time.thread_time() - start
    runner.land()
    return StepRun(host, time.perf_counter() - began)


def _seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
