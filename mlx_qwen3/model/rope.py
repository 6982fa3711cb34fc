"""Rotary position embeddings, stretched for longer contexts where the config says so.

Sources: RoFormer (arXiv:2104.09864), YaRN (arXiv:2309.00071); `frequencies` computes what MLX
does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_qwen3.model.config import RopeParameters

Rotation = Callable[[mx.array], mx.array]  # (B, heads, L, head_dim) -> the same, rotated


class Rope:
    """Rotates queries and keys by their positions.

    attention_factor: what the reference multiplies cos and sin by. A rotation is linear, so
    attention folds its square into the softmax scale instead and no kernel is spent on it.
    written_out: see operations.py.
    """

    def __init__(
        self, head_dim: int, parameters: RopeParameters, *, written_out: bool = False
    ) -> None:
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
        self._matrices = self._tables() if written_out else None

    def at(self, offset: int | mx.array, length: int) -> Rotation:
        """The rotation of `length` tokens from position `offset` on, for all layers of a step.

        offset: an int, or an int32 array with the position of each sequence: (B,).
        """
        if self._matrices and length == 1:
            if isinstance(offset, int) or offset.size == 1:
                return self._one(mx.array(offset))
            return self._each(offset)
        return partial(
            mx.fast.rope,
            dims=self._dims,
            traditional=False,
            base=self._base,
            scale=self._scale,
            offset=offset,
            freqs=self._freqs,
        )

    def _one(self, offset: mx.array) -> Rotation:
        """The rotation of one token of a sequence."""
        matrix = self._matrix(offset)
        return lambda x: x @ matrix.astype(x.dtype)

    def _each(self, offsets: mx.array) -> Rotation:
        """The same of each sequence at its own place, with the same products: (B,) int32."""
        matrices = mx.stack([self._matrix(offset) for offset in offsets])  # (B, width, width)
        return lambda x: (x.squeeze(2) @ matrices.astype(x.dtype))[:, :, None]

    def _matrix(self, offset: mx.array) -> mx.array:
        """What a token at `offset` is multiplied with to be rotated: (head_dim, head_dim).

        The angles are MLX's own, bit for bit, so that the keys of a prompt fit its queries.
        """
        assert self._matrices is not None
        radians, eye, turn = self._matrices
        position = offset.astype(mx.float32) * self._scale
        angles = position * radians  # (head_dim / 2,)
        cos, sin = mx.cos(angles), mx.sin(angles)
        return eye * mx.concatenate([cos, cos]) + turn * mx.concatenate([sin, sin])

    def _tables(self) -> tuple[mx.array, mx.array, mx.array]:
        """Radians per token, (head_dim / 2,), and two matrices, (head_dim, head_dim).

        The product of x with the first is x, with the second its quarter turn: (-x2, x1) of the
        halves (x1, x2).
        """
        half = self._dims // 2
        if self._freqs is not None:
            radians = mx.reciprocal(self._freqs)
        else:
            assert self._base is not None  # one of the two is always set
            radians = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(self._base) / half))
        eye, zero = mx.eye(half), mx.zeros((half, half))
        turn = mx.concatenate(
            [mx.concatenate([zero, eye], axis=1), mx.concatenate([-eye, zero], axis=1)], axis=0
        )
        tables = radians, mx.eye(self._dims), turn
        mx.eval(tables)
        return tables


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
