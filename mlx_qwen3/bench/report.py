"""From measured turns to what is said of them: figures per round, their medians, their ratios.

The values of every round are kept by name, so that a median, a spread and a ratio of rounds are
the same three lines for each figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_qwen3.bench.graph import Kernels
from mlx_qwen3.bench.measure import (
    PROBE,
    Length,
    LengthRun,
    Plan,
    Progress,
    Turn,
    Turns,
    take_turns,
)
from mlx_qwen3.bench.roofline import Bandwidth, Weights, measure_bandwidth
from mlx_qwen3.bench.runner import Runner
from mlx_qwen3.bench.stats import Spread
from mlx_qwen3.model.experts import ExpertTraffic

Values = Mapping[str, tuple[float, ...]]

# Figures of a turn; a step's are the medians of the turn's steps.
_TURN: dict[str, Callable[[Turn], float]] = {
    "load_seconds": lambda turn: turn.load,
    "first_token_seconds": lambda turn: turn.warm_first_token,
    "step_seconds": lambda turn: statistics.median(one.total for one in turn.steps),
    "step_host_seconds": lambda turn: statistics.median(one.host for one in turn.steps),
    "step_device_seconds": lambda turn: statistics.median(one.device for one in turn.steps),
}
_LENGTH: dict[str, Callable[[LengthRun], float]] = {
    "first_token_seconds": lambda run: run.first_token,
    "prefill_tokens_per_second": lambda run: run.length.prompt / run.first_token,
    "decode_tokens_per_second": lambda run: run.length.tokens / run.decode,
}


@dataclass(frozen=True)
class LengthReport:
    """One prompt length. asked: what the others got, where a slow runner got less.

    prefill_peak, decode_peak: most bytes in use in either part. kv_bytes: keys and values at the
    end. read: bytes of weights, keys and values that a step in the middle reads. traffic: of
    streamed experts behind the first tokens of all rounds.
    """

    length: Length
    asked: Length
    values: Values
    prefill_peak: int
    decode_peak: int
    kv_bytes: int
    read: int
    traffic: ExpertTraffic | None = None

    @property
    def reduced(self) -> bool:
        return self.length != self.asked

    @property
    def disk_bytes_per_token(self) -> float | None:
        """Of experts that were not in memory, on the average of all rounds."""
        if self.traffic is None:
            return None
        return self.traffic.bytes_read / (self.length.tokens * self.rounds)

    @property
    def rounds(self) -> int:
        """How often it was measured."""
        return len(self.values["decode_tokens_per_second"])


@dataclass(frozen=True)
class SideReport:
    """One runner. cold_first_token: seconds, the first work of its kind in this process."""

    name: str
    weights: Weights
    kernels: Kernels | None
    load_peak: int
    cold_first_token: float
    values: Values
    lengths: tuple[LengthReport, ...]


@dataclass(frozen=True)
class Report:
    """Everything that was measured. Ratios are to the last side."""

    bandwidth: Bandwidth
    rounds: int
    sides: tuple[SideReport, ...]

    def bandwidth_share(self, side: SideReport, index: int) -> float:
        """What decoding at that length reads per second, as a share of what memory gives."""
        length = side.lengths[index]
        rate = statistics.median(length.values["decode_tokens_per_second"])
        return rate * length.read / self.bandwidth.bytes_per_second


def run(runners: Sequence[Runner], plan: Plan, progress: Progress) -> Report:
    """Measure the memory, let the runners take turns, count their kernels."""
    bandwidth = measure_bandwidth()
    turns = take_turns(runners, plan, progress)
    return Report(bandwidth, plan.rounds, tuple(_side(one, plan) for one in turns))


def _side(turns: Turns, plan: Plan) -> SideReport:
    return SideReport(
        name=turns.runner.name,
        weights=turns.cold.weights,
        kernels=turns.runner.kernels(),
        load_peak=max(turn.load_peak for turn in turns.turns),
        cold_first_token=turns.cold.first_token,
        values={name: tuple(map(value, turns.turns)) for name, value in _TURN.items()},
        lengths=tuple(_length(turns, index, asked) for index, asked in enumerate(plan.lengths)),
    )


def _length(turns: Turns, index: int, asked: Length) -> LengthReport:
    runs = [turn.lengths[index] for turn in turns.turns]
    length = turns.lengths[index]
    kv_bytes = turns.turns[0].kv_bytes[index]
    middle = (length.prompt + length.tokens / 2) / (length.prompt + length.tokens)
    return LengthReport(
        length=length,
        asked=asked,
        values={name: tuple(map(value, runs)) for name, value in _LENGTH.items()},
        prefill_peak=max(run.prefill_peak for run in runs),
        decode_peak=max(run.decode_peak for run in runs),
        kv_bytes=kv_bytes,
        read=turns.cold.weights.read + int(kv_bytes * middle),
        traffic=_sum([run.traffic for run in runs if run.traffic is not None]),
    )


def _sum(traffic: Sequence[ExpertTraffic]) -> ExpertTraffic | None:
    return sum(traffic, ExpertTraffic()) if traffic else None


def ratios(values: Values, others: Values) -> dict[str, Spread]:
    """Of each figure, round by round."""
    return {name: Spread.of_ratios(values[name], others[name]) for name in values}


def length_ratios(one: LengthReport, other: LengthReport) -> dict[str, Spread]:
    """As `ratios`; the first token's only behind prompts of the same length."""
    found = ratios(one.values, other.values)
    if one.length.prompt != other.length.prompt:
        del found["first_token_seconds"]
    return found


def as_dict(report: Report) -> dict[str, Any]:
    """What --json prints of it, in seconds, bytes and tokens per second."""
    *others, base = report.sides
    return {
        "memory_bandwidth": asdict(report.bandwidth),
        "rounds": report.rounds,
        "sides": {side.name: _side_dict(report, side) for side in report.sides},
        "ratios": [_ratio_dict(side, base) for side in others],
    }


def _side_dict(report: Report, side: SideReport) -> dict[str, Any]:
    return {
        "dtype": side.weights.dtype,
        "weights_bytes": side.weights.nbytes,
        "weights_read_per_token_bytes": side.weights.read,
        "load_peak_bytes": side.load_peak,
        "kernels": None if side.kernels is None else asdict(side.kernels),
        "cold_first_token_seconds": side.cold_first_token,
        "first_token_prompt_tokens": PROBE,
        **_spreads(side.values),
        "lengths": [
            _length_dict(side, one, report.bandwidth_share(side, index))
            for index, one in enumerate(side.lengths)
        ],
    }


def _length_dict(side: SideReport, one: LengthReport, share: float) -> dict[str, Any]:
    return {
        "prompt_tokens": one.length.prompt,
        "decoded_tokens": one.length.tokens,
        "asked_prompt_tokens": one.asked.prompt,
        "asked_decoded_tokens": one.asked.tokens,
        **_spreads(one.values),
        "kv_bytes": one.kv_bytes,
        "prefill_peak_bytes": one.prefill_peak,
        "decode_peak_bytes": one.decode_peak,
        "prefill_peak_to_weights_and_kv": one.prefill_peak / (side.weights.nbytes + one.kv_bytes),
        "decode_peak_to_weights_and_kv": one.decode_peak / (side.weights.nbytes + one.kv_bytes),
        "read_per_token_bytes": one.read,
        "bandwidth_share": share,
        "expert_hit_rate": None if one.traffic is None else one.traffic.hit_rate,
        "expert_bytes_read_per_token": one.disk_bytes_per_token,
    }


def _ratio_dict(side: SideReport, base: SideReport) -> dict[str, Any]:
    pairs = zip(side.lengths, base.lengths, strict=True)
    return {
        "of": side.name,
        "to": base.name,
        **{name: asdict(one) for name, one in ratios(side.values, base.values).items()},
        "lengths": [
            {
                "asked_prompt_tokens": one.asked.prompt,
                **{name: asdict(found) for name, found in length_ratios(one, other).items()},
            }
            for one, other in pairs
        ],
    }


def _spreads(values: Values) -> dict[str, Any]:
    return {name: asdict(Spread.of(found)) for name, found in values.items()}
