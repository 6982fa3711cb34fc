"""Rotary position embeddings, stretched for longer contexts where the config says so.

Sources: RoFormer (arXiv:2104.09864), YaRN (arXiv:2309.00071); the frequencies are those of
transformers' modeling_rope_utils, to the last constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen3.model.config import RopeParameters

Frequencies = np.ndarray[Any, np.dtype[Any]]  # (head_dim / 2,), radians per token


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
            self._freqs = mx.array(1.0 / inverse_frequencies(head_dim, parameters))
        self._matrices = self._tables() if written_out else None

    def at(self, offset: int | mx.array, length: int) -> Rotation:
        """The rotation of `length` tokens from position `offset` on, for all layers of a step.

        offset: an int, or an int32 array with the position of each sequence: (B,).
        """
        if self._matrices and length == 1 and (isinstance(offset, int) or offset.size == 1):
            return self._matrix(mx.array(offset), *self._matrices)
        return partial(
            mx.fast.rope,
            dims=self._dims,
            traditional=False,
            base=self._base,
            scale=self._scale,
            offset=offset,
            freqs=self._freqs,
        )

    def _matrix(
        self, offset: mx.array, radians: mx.array, eye: mx.array, turn: mx.array
    ) -> Rotation:
        """Rotate one token by a product with a (head_dim, head_dim) matrix.

        The angles are MLX's own, bit for bit, so that the keys of a prompt fit its queries.
        """
        position = offset.astype(mx.float32) * self._scale
        angles = position * radians  # (head_dim / 2,)
        cos, sin = mx.cos(angles), mx.sin(angles)
        matrix = eye * mx.concatenate([cos, cos]) + turn * mx.concatenate([sin, sin])

        def rotate(x: mx.array) -> mx.array:
            return x @ matrix.astype(x.dtype)

        return rotate

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


def inverse_frequencies(head_dim: int, parameters: RopeParameters) -> Frequencies:
    """Radians per token for each pair of dimensions: (head_dim / 2,) float32."""
    plain: Frequencies = (
        1.0 / parameters.rope_theta ** (np.arange(0, head_dim, 2) / head_dim)
    ).astype(np.float32)
    if parameters.rope_type == "yarn":
        return _yarn(plain, head_dim, parameters)
    if parameters.rope_type == "llama3":
        return _llama3(plain, parameters)
    stretched: Frequencies = plain / np.float32(parameters.factor)
    return stretched


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


def _yarn(plain: Frequencies, head_dim: int, parameters: RopeParameters) -> Frequencies:
    """Keep the fast dimensions, interpolate the slow ones, ramp in between."""

    def dimension(rotations: float) -> float:
        """The dimension that turns this often within the trained context."""
        trained = parameters.original_max_position_embeddings
        return (
            head_dim
            * math.log(trained / (rotations * 2 * math.pi))
            / (2 * math.log(parameters.rope_theta))
        )

    low, high = dimension(parameters.beta_fast), dimension(parameters.beta_slow)
    if parameters.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # the reference's guard against a division by zero
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    stretched = plain / np.float32(parameters.factor)
    frequencies: Frequencies = stretched * ramp + plain * (1 - ramp)
    return frequencies.astype(np.float32)


def _llama3(plain: Frequencies, parameters: RopeParameters) -> Frequencies:
    """Keep short wavelengths, stretch long ones, blend in between."""
    trained = parameters.original_max_position_embeddings
    slow, fast = parameters.low_freq_factor, parameters.high_freq_factor
    wavelength = 2 * np.pi / plain
    blend = np.clip((trained / wavelength - slow) / (fast - slow), 0, 1)
    frequencies: Frequencies = (1 - blend) * plain / parameters.factor + blend * plain
    return frequencies.astype(np.float32)
