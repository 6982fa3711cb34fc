"""How far one model's predictions are from another's.

    KL(p || q) = sum over the vocabulary of p (log p - log q)

with p the reference's probabilities and q the model's, in nats per token. Of a large
vocabulary only the reference's most likely tokens are kept and all others count as one: the
divergence of the so coarsened distributions is never above the exact one (the data processing
inequality) and falls short of it by the tail's mass times the divergence within the tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Vocabularies up to this size are kept whole, which makes the divergence exact.
WHOLE_VOCABULARY = 4096
# A probability that float32 cannot tell from the rounding of the sum of the others.
_SMALLEST_TAIL = 1e-7


@dataclass(frozen=True)
class Prediction:
    """What the reference expects after each token of a window but the last.

    logprobs: (L - 1, k) float32. ids: (L - 1, k) the tokens they belong to, the likeliest
    first; None when it is the whole vocabulary in order.
    """

    logprobs: mx.array
    ids: mx.array | None = None


def log_probabilities(logits: mx.array) -> mx.array:
    """(..., vocab_size) of any dtype -> the same in float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def predict(logprobs: mx.array, keep: int) -> Prediction:
    """What is kept of a reference's (L - 1, vocab_size): `keep` tokens, or all of a few."""
    if logprobs.shape[-1] <= max(keep, WHOLE_VOCABULARY):
        return Prediction(logprobs)
    ids = mx.argpartition(-logprobs, kth=keep - 1, axis=-1)[:, :keep]
    kept = mx.take_along_axis(logprobs, ids, axis=-1)
    order = mx.argsort(-kept, axis=-1)
    return Prediction(
        mx.take_along_axis(kept, order, axis=-1), mx.take_along_axis(ids, order, axis=-1)
    )


def divergence(reference: Prediction, logprobs: mx.array) -> mx.array:
    """KL(reference || model) of each token, (L - 1,). logprobs: the model's, whole."""
    p, q = reference.logprobs, _as_kept(reference, logprobs)
    each = mx.exp(p) * (p - q)
    total = each.sum(axis=-1)
    if reference.ids is None:
        return total
    tail, expected = _tail(p), _tail(q)
    return total + tail * (mx.log(tail) - mx.log(expected))


def agrees(reference: Prediction, logprobs: mx.array) -> mx.array:
    """Whether both find the same token likeliest, (L - 1,) bool."""
    if reference.ids is None:
        return reference.logprobs.argmax(axis=-1) == logprobs.argmax(axis=-1)
    # Not the model's argmax: of tokens that are equally likely, either may stand first.
    first = mx.take_along_axis(logprobs, reference.ids[:, :1], axis=-1)
    return first[:, 0] >= logprobs.max(axis=-1)


def _as_kept(reference: Prediction, logprobs: mx.array) -> mx.array:
    if reference.ids is None:
        return logprobs
    return mx.take_along_axis(logprobs, reference.ids, axis=-1)


def _tail(kept: mx.array) -> mx.array:
    return mx.maximum(1 - mx.exp(kept).sum(axis=-1), _SMALLEST_TAIL)


@dataclass(frozen=True)
class Divergence:
    """mean, p99, max: nats per token. top1: share of tokens where both agree on the likeliest.

    exact: False where a tail of the vocabulary counted as one.
    """

    mean: float
    p99: float
    max: float
    top1: float
    exact: bool

    @classmethod
    def of(cls, each: Floats, same: Floats, *, exact: bool) -> Divergence:
        """From the divergence and the agreement of every token."""
        return cls(
            # Rounding may leave a model a hair below itself.
            mean=max(float(each.mean()), 0.0),
            p99=max(float(np.percentile(each, 99)), 0.0),
            max=max(float(each.max()), 0.0),
            top1=float(same.mean()),
            exact=exact,
        )
