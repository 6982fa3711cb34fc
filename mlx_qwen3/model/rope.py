"""Rotary position embeddings, stretched for longer contexts where the config says so.

Sources: RoFormer (arXiv:2104.09864), YaRN (arXiv:2309.00071); `frequencies` computes what MLX
does not.
"""

from __future__ import annotations

import math

import mlx.core as mx

from mlx_qwen3.model.config import RopeParameters


class Rope:
    """Rotates queries and keys by their positions.

    attention_factor: what the reference multiplies cos and sin by. A rotation is linear, so
    attention folds its square into the softmax scale instead and no kernel is spent on it.
    """

    def __init__(self, head_dim: int, parameters: RopeParameters) -> None:
        self._dims = head_dim
        self.attention_factor = attention_factor(parameters)
        # MLX computes plain and linear frequencies itself, and wants the inverse of the others.
        self._base: float | None = None
        self._scale = 1.0
        self._freqs: mx.array | None = None
        if parameters.rope_type in ("default", "linear"):
            self._base = parameters.rope_theta
            self._scale = 1.0 / parameters.factor
        else:
            from mlx_qwen3.model.frequencies import inverse_frequencies

            self._freqs = mx.array(1.0 / inverse_frequencies(head_dim, parameters))

    def __call__(self, x: mx.array, offset: int) -> mx.array:
        """x: (B, heads, L, head_dim); offset: the position of its first token. Same shape."""
        return mx.fast.rope(
            x,
            self._dims,
            traditional=False,
            base=self._base,
            scale=self._scale,
            offset=offset,
            freqs=self._freqs,
        )


def attention_factor(parameters: RopeParameters) -> float:
    """YaRN's correction of the attention temperature (1.0 for every other type)."""
    if parameters.rope_type != "yarn":
        return 1.0
    if parameters.attention_factor is not None:
        return parameters.attention_factor
    if parameters.mscale and parameters.mscale_all_dim:
        return _mscale(parameters.factor, parameters.mscale) / _mscale(
            parameters.factor, parameters.mscale_all_dim
        )
    return _mscale(parameters.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
