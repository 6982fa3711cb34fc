"""Rotary position embeddings, stretched for longer contexts where the config says so.

Sources: RoFormer (arXiv:2104.09864), YaRN (arXiv:2309.00071); the frequencies are those of
transformers' modeling_rope_utils, to the last constant.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen3.model.config import RopeParameters

Frequencies = np.ndarray[Any, np.dtype[Any]]  # (head_dim / 2,), radians per token


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
