"""How good a checkpoint is: perplexity, and its divergence from a reference.

Checkpoints are run one layer at a time (stream.py) and the reference's predictions lie on disk
(reference.py), so no model needs to fit in memory, let alone two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.config import ModelConfig, read_config
from mlx_qwen3.model.linear import AnyLinear
from mlx_qwen3.model.weights import num_parameters
from mlx_qwen3_convert.calibration import Window
from mlx_qwen3_convert.divergence import (
    Divergence,
    Floats,
    Prediction,
    agrees,
    divergence,
    log_probabilities,
)
from mlx_qwen3_convert.stream import LayerStream, Progress, silent


@dataclass(frozen=True)
class Size:
    """nbytes: of all weights. bits_per_weight: over the whole model, scales included."""

    nbytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class Score:
    """How a model does on a text. tokens: how many were predicted; perplexity: of those."""

    tokens: int
    perplexity: float
    divergence: Divergence | None = None


def measure_size(folder: Path) -> Size:
    """What the weights of a checkpoint folder take. Raises ConfigError, WeightsError."""
    config = ModelConfig.from_dict(read_config(folder))
    tied = config.tie_word_embeddings
    nbytes = sum(
        info.nbytes
        for name, info in Checkpoint.from_folder(folder).tensors.items()
        if not (tied and name.startswith("lm_head."))  # a copy that is not read
    )
    return Size(nbytes, 8 * nbytes / num_parameters(config))


def evaluate(
    folder: Path,
    windows: Sequence[Window],
    reference: Iterable[Prediction] | None = None,
    *,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Score:
    """Run a checkpoint over a text, layer by layer.

    reference: its predictions for the same windows (`open_reference`, `exact_reference`).
    Raises as LayerStream.
    """
    states, head = LayerStream(folder, dtype=dtype).run(windows, progress)
    return score(windows, logprobs_of(states, head), reference)


def exact_reference(
    folder: Path,
    windows: Sequence[Window],
    *,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Iterator[Prediction]:
    """Predictions over the whole vocabulary, made anew: nothing is kept on disk.

    The reference's last hidden states and its head stay in memory meanwhile, no layers.
    """
    states, head = LayerStream(folder, dtype=dtype).run(windows, progress)
    return (Prediction(logprobs) for logprobs in logprobs_of(states, head))


def logprobs_of(states: Iterable[mx.array], head: AnyLinear) -> Iterator[mx.array]:
    """(1, L, hidden_size) of each window -> (L - 1, vocab_size) float32."""
    return (log_probabilities(head(x[0, :-1])) for x in states)


def score(
    windows: Sequence[Window],
    logprobs: Iterable[mx.array],
    reference: Iterable[Prediction] | None = None,
) -> Score:
    """The score of log-probabilities, (L - 1, vocab_size) for each window."""
    losses, divergences, same = [], [], []
    exact = True
    pairs = zip(windows, logprobs, repeat(None) if reference is None else reference, strict=False)
    for window, predicted, expected in pairs:
        targets = mx.array(window[1:])[:, None]
        losses.append(_numbers(-mx.take_along_axis(predicted, targets, axis=-1)[:, 0]))
        if expected is not None:
            divergences.append(_numbers(divergence(expected, predicted)))
            same.append(_numbers(agrees(expected, predicted)))
            exact = exact and expected.ids is None
    loss = np.concatenate(losses)
    apart = (
        Divergence.of(np.concatenate(divergences), np.concatenate(same), exact=exact)
        if divergences
        else None
    )
    return Score(len(loss), math.exp(min(float(loss.mean()), 700.0)), apart)


def _numbers(values: mx.array) -> Floats:
    return np.array(values.astype(mx.float32), dtype=np.float64)
