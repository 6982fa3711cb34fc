"""The small operations between the matrix products, as a device runs them best.

Metal and CUDA have one kernel for each of `mx.fast`. MLX's CPU backend has none and makes each
of a dozen primitives; where a step serves one token, their number is most of its time on a small
model. There the operations are written out, with as few primitives as they need.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_qwen3.model.activations import Activation, gated
from mlx_qwen3.model.policy import ComputePolicy


@dataclass(frozen=True)
class Operations:
    """gate: act(gate) * up of the feed-forward parts.

    written_out: spell norms and rotations out for a device that has no kernels for them.
    score_bytes: see ComputePolicy.
    """

    gate: Activation
    written_out: bool = False
    score_bytes: int | None = None

    @classmethod
    def for_policy(cls, hidden_act: str, policy: ComputePolicy) -> Operations:
        """What `policy` wants of a config's hidden_act."""
        written_out = policy.backend == "cpu" and policy.dtype == mx.float32
        gate = gated(hidden_act, compiled=policy.compiled)
        return cls(gate, written_out, policy.score_bytes)

    def rms_norm(self, weight: mx.array, eps: float) -> RMSNorm:
        """x / rms(x) * weight over the last axis; weight: (dims,), or (heads, dims)."""
        return (_WrittenNorm if self.written_out else RMSNorm)(weight, eps)


class RMSNorm(Module):
    """x / rms(x) * weight over the last axis, in float32 inside."""

    def __init__(self, weight: mx.array, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., dims), or (..., heads, dims) where each head has its weight -> the same."""
        if self.weight.ndim == 1:
            return mx.fast.rms_norm(x, self.weight, self._eps)
        return mx.fast.rms_norm(x, None, self._eps) * self.weight


class _WrittenNorm(RMSNorm):
    """The same without a division by the width: weight * sqrt(n) * x / sqrt(sum(x^2) + n eps)."""

    def __init__(self, weight: mx.array, eps: float) -> None:
        width = weight.shape[-1]
        super().__init__(weight * width**0.5, eps * width)

    def __call__(self, x: mx.array) -> mx.array:
        total = mx.sum(mx.square(x), axis=-1, keepdims=True)
        return x * mx.rsqrt(total + self._eps) * self.weight
