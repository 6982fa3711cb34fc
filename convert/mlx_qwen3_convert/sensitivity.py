"""What quantizing one part of a model costs: the divergence of its predictions, part by part.

Layers below a changed one compute what they always did, so the work goes up through the model
once: at each layer the hidden states of the unchanged model are at hand, and only the layers
from there on run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_qwen3.model.linear import Quantization
from mlx_qwen3.model.transformer import Transformer
from mlx_qwen3_convert.budget import fitting
from mlx_qwen3_convert.calibration import Window
from mlx_qwen3_convert.divergence import Prediction, divergence, log_probabilities, predict
from mlx_qwen3_convert.evaluate import Score, score
from mlx_qwen3_convert.formats import parse_format
from mlx_qwen3_convert.groups import (
    ROUTER,
    Group,
    apply_recipe,
    find_groups,
    restore,
    rounded,
)
from mlx_qwen3_convert.recipes import Recipe
from mlx_qwen3_convert.reference import KEEP
from mlx_qwen3_convert.stream import Progress, silent

# Groups of 32 cost half a bit and save a fifth of the variance, which a quarter bit buys too.
CANDIDATES: tuple[Quantization, ...] = tuple(
    stored
    for word in ("2g64", "3g128", "3g64", "4g128", "4g64", "5g128", "5g64", "6g128", "8g64")
    if (stored := parse_format(word)) is not None
)


@dataclass(frozen=True)
class Sensitivity:
    """Nats per token that storing this group in each format costs, all else unquantized."""

    group: Group
    costs: Mapping[Quantization, float]


@dataclass
class Bench:
    """A model in memory with a text, ready to be measured with changed weights.

    dtype: of scales in the files that a conversion would write.
    """

    model: Transformer
    windows: Sequence[Window]
    dtype: mx.Dtype
    groups: list[Group] = field(init=False)
    reference: list[Prediction] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = find_groups(self.model)
        self.reference = []
        for logprobs in self.logprobs():
            kept = predict(logprobs, KEEP)
            mx.eval([part for part in (kept.logprobs, kept.ids) if part is not None])
            self.reference.append(kept)

    def logprobs(self) -> Iterator[mx.array]:
        """Of the model as it is now, (L - 1, vocab_size) for each window."""
        return (self._finish(0, x) for x in self.embedded())

    def score(self) -> Score:
        """Of the model as it is now, against the model as it was."""
        return score(self.windows, self.logprobs(), self.reference)

    def score_recipe(self, recipe: Recipe) -> Score:
        """What a conversion by this recipe would score, without converting."""
        before = apply_recipe(self.groups, recipe, self.dtype)
        try:
            return self.score()
        finally:
            restore(self.groups, before)

    def embedded(self) -> Iterator[mx.array]:
        """What the first layer reads, (1, L, hidden_size) for each window."""
        return (self.model.embed_tokens.rows(mx.array([window])) for window in self.windows)

    def cost(self, start: int, states: Iterable[mx.array]) -> float:
        """Mean divergence when the layers from `start` on read these states."""
        found = []
        for expected, x in zip(self.reference, states, strict=True):
            found.append(np.array(divergence(expected, self._finish(start, x))))
        return max(float(np.concatenate(found).mean(dtype=np.float64)), 0.0)

    def through(self, index: int, states: Iterable[mx.array]) -> list[mx.array]:
        """The states behind one layer."""
        passed = []
        for x in states:
            passed.append(self._layer(index, x))
            mx.eval(passed[-1])
        return passed

    def _finish(self, start: int, x: mx.array) -> mx.array:
        for index in range(start, len(self.model.layers)):
            x = self._layer(index, x)
        return log_probabilities(self.model.logits(self.model.norm(x[0, :-1])))

    def _layer(self, index: int, x: mx.array) -> mx.array:
        cache = self.model.make_cache().layers[index]
        rotation = self.model.rope.at(0, x.shape[1])
        return self.model.layers[index](x, cache, rotation, cache.mask(x.shape[1]))


def measure(
    bench: Bench,
    candidates: Sequence[Quantization] = CANDIDATES,
    progress: Progress = silent,
) -> list[Sensitivity]:
    """The sensitivity of every group but the routers, in the model's order.

    Progress counts measurements. A group that no candidate fits is left out: it stays in floating
    point.
    """
    groups = [group for group in bench.groups if group.part != ROUTER]
    steps = _Steps(sum(len(fitting(group.columns, candidates)) for group in groups), progress)
    found = []
    states: list[mx.array] = list(bench.embedded())
    reached = 0
    for group in groups:
        while group.layer is not None and reached < group.layer:
            states, reached = bench.through(reached, states), reached + 1
        costs: dict[Quantization, float] = {}
        for stored in fitting(group.columns, candidates):
            costs[stored] = _cost(bench, group, stored, reached, states)
            steps.advance()
        if costs:
            found.append(Sensitivity(group, costs))
    return found


def _cost(
    bench: Bench, group: Group, stored: Quantization, reached: int, states: list[mx.array]
) -> float:
    before = group.weights()
    group.replace([rounded(weight, stored, bench.dtype) for weight in before])
    try:
        if group.layer is None:  # the embedding, which may be the head too, or the head
            return bench.cost(0, bench.embedded())
        return bench.cost(reached, states)
    finally:
        group.replace(before)


class _Steps:
    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def advance(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)
