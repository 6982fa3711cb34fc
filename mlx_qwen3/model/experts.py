"""The mixture-of-experts layer: a router, and experts that are all in memory.

Those that are not are in streamed_experts.py.

The router follows the reference (transformers' Qwen3MoeTopKRouter): softmax over all experts in
float32, the largest num_experts_per_tok, renormalised when norm_topk_prob is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_qwen3.model.activations import Activation
from mlx_qwen3.model.linear import AnyLinear, Quantization, nbytes

# From this many (token, expert) pairs on, sorting by expert pays: MLX's gather kernels then
# read each expert once for all its tokens.
_SORT_FROM = 64


@dataclass(frozen=True)
class ExpertTraffic:
    """What streamed experts took so far.

    lookups: experts that the tokens of a step needed, each once per layer. misses: those of them
    that were not in memory. bytes_read: from files.
    """

    lookups: int = 0
    misses: int = 0
    bytes_read: int = 0

    def __add__(self, other: ExpertTraffic) -> ExpertTraffic:
        return ExpertTraffic(
            self.lookups + other.lookups,
            self.misses + other.misses,
            self.bytes_read + other.bytes_read,
        )

    def __sub__(self, other: ExpertTraffic) -> ExpertTraffic:
        return self + ExpertTraffic(-other.lookups, -other.misses, -other.bytes_read)

    @property
    def hit_rate(self) -> float:
        """Share of the lookups that were in memory, 0 to 1; 1 where there were none."""
        return 1 - self.misses / self.lookups if self.lookups else 1.0


class ExpertMatrices(Module):
    """One matrix per expert, dense or packed; multiplies rows by the matrix each is sent to.

    weight: (num_experts, out, in), or packed as in QuantizedLinear with quantization set.
    global_scale: (num_experts,) float32, which nvfp4 may have.
    """

    def __init__(
        self,
        weight: mx.array,
        scales: mx.array | None = None,
        biases: mx.array | None = None,
        global_scale: mx.array | None = None,
        quantization: Quantization | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.scales = scales
        self.biases = biases
        self.global_scale = global_scale
        self.quantization = quantization

    def __call__(
        self, x: mx.array, indices: mx.array, rows: mx.array | None = None, *, ordered: bool = False
    ) -> mx.array:
        """x: (..., 1, in), indices: (...) expert of each row -> (..., 1, out).

        rows: which of x's rows each is, where that is known beforehand: MLX would count them anew
        at every call. ordered: the indices are sorted, which lets kernels read an expert once
        (if rows is left out).
        """
        if self.quantization is None or self.scales is None:
            return mx.gather_mm(
                x,
                self.weight.swapaxes(-1, -2),
                lhs_indices=rows,
                rhs_indices=indices,
                sorted_indices=ordered,
            )
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.biases,
            lhs_indices=rows,
            rhs_indices=indices,
            transpose=True,
            global_scale=self.global_scale,
            sorted_indices=ordered,
            **self.quantization.arguments(),
        )


class ResidentExperts(Module):
    """All experts of one layer in memory: down(act(gate(x)) * up(x)) for each chosen pair.

    gate_up: one fused set of matrices (gate rows above up rows), or the two apart when they are
    packed differently.
    """

    def __init__(
        self, gate_up: list[ExpertMatrices], down: ExpertMatrices, activation: Activation
    ) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self._activation = activation

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """x: (T, hidden); experts, weights: (T, num_experts_per_tok) -> (T, hidden)."""
        y = (self._sorted if experts.size >= _SORT_FROM else self._unsorted)(x, experts)
        return weighted_sum(y, weights)

    def rows(self, x: mx.array, experts: mx.array) -> mx.array:
        """Each row by one expert: x (P, hidden), experts (P,), sorted -> (P, 1, hidden)."""
        rows = x[:, None]
        gate, up = self._gate_up(
            [matrices(rows, experts, ordered=True) for matrices in self.gate_up]
        )
        return self.down(self._activation(gate, up), experts, ordered=True)

    @property
    def traffic(self) -> ExpertTraffic | None:
        """Nothing is read while the model runs."""
        return None

    def idle_bytes(self, top_k: int) -> int:
        """See Experts."""
        held = nbytes(self)
        return held - held * top_k // self.down.weight.shape[0]

    def _sorted(self, x: mx.array, experts: mx.array) -> mx.array:
        """Group the pairs by expert, multiply, put them back: (T, top_k, 1, hidden)."""
        top_k = experts.shape[-1]
        flat = experts.flatten()
        order = mx.argsort(flat)
        y = self.rows(x[order // top_k], flat[order])
        return y[mx.argsort(order)].reshape(*experts.shape, *y.shape[1:])

    def _unsorted(self, x: mx.array, experts: mx.array) -> mx.array:
        """Multiply each pair by itself: (T, top_k, 1, hidden)."""
        tokens, pairs = _pair_rows(*experts.shape)
        rows = x[:, None]
        gate, up = self._gate_up([matrices(rows, experts, tokens) for matrices in self.gate_up])
        return self.down(self._activation(gate, up), experts, pairs)

    def _gate_up(self, outputs: list[mx.array]) -> list[mx.array]:
        return outputs if len(outputs) == 2 else list(mx.split(outputs[0], 2, axis=-1))


def weighted_sum(y: mx.array, weights: mx.array) -> mx.array:
    """Of each token: y (T, top_k, 1, hidden), weights (T, top_k) -> (T, hidden)."""
    return (weights[:, None] @ y.squeeze(-2)).squeeze(1)


@cache
def _pair_rows(tokens: int, top_k: int) -> tuple[mx.array, mx.array]:
    """The token of each (token, expert) pair, and the pair itself: (tokens, top_k) both.

    Few, small, and the same for every layer and step.
    """
    # From lists: arrays not yet evaluated would belong to a thread, or to a trace.
    pairs = [[token * top_k + one for one in range(top_k)] for token in range(tokens)]
    rows = [[token] * top_k for token in range(tokens)]
    return mx.array(rows, dtype=mx.uint32), mx.array(pairs, dtype=mx.uint32)


class Experts(Protocol):
    """What a sparse layer sends its tokens to; whether they are in memory is not its concern."""

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """x: (T, hidden); experts, weights: (T, num_experts_per_tok) -> (T, hidden)."""
        ...

    @property
    def traffic(self) -> ExpertTraffic | None:
        """What was read so far; None where all experts are in memory."""
        ...

    def idle_bytes(self, top_k: int) -> int:
        """Bytes of weights in memory that a token with top_k experts does not read."""
        ...


class SparseMLP(Module):
    """Router and experts of one layer."""

    def __init__(
        self, router: AnyLinear, experts: Experts, *, top_k: int, norm_topk_prob: bool
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self._top_k = top_k
        self._norm_topk_prob = norm_topk_prob

    def __call__(self, x: mx.array) -> mx.array:
        """x: (B, L, hidden) -> (B, L, hidden)."""
        experts, weights = self._route(x)
        tokens = x.reshape(-1, x.shape[-1])  # (T, hidden)
        return self.experts(tokens, experts, weights.astype(x.dtype)).reshape(x.shape)

    def idle_bytes(self) -> int:
        """Bytes of weights that one token does not read."""
        return self.experts.idle_bytes(self._top_k)

    @property
    def traffic(self) -> ExpertTraffic | None:
        """See Experts."""
        return self.experts.traffic

    def _route(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(B, L, hidden) -> the chosen experts of each token and their weights: (T, top_k) both.

        Softmax keeps the order, so the choice is made on the logits; with norm_topk_prob the
        softmax over the chosen ones alone is the same number as renormalising them all. `precise`
        is float32 inside, as the reference; casts around it would be kernels of their own.
        """
        logits = self.router(x).reshape(-1, self.router.out_dims)  # (T, num_experts)
        first = logits.shape[-1] - self._top_k
        experts = mx.argpartition(logits, kth=first, axis=-1)[:, first:]
        chosen = mx.take_along_axis(logits, experts, axis=-1)
        if self._norm_topk_prob:
            return experts, mx.softmax(chosen, axis=-1, precise=True)
        total = mx.logsumexp(logits.astype(mx.float32), axis=-1, keepdims=True)
        return experts, mx.exp(chosen.astype(mx.float32) - total)
