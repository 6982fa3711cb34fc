"""The frequencies of rotary embeddings that MLX does not compute itself: YaRN, Llama 3.

Source: transformers' modeling_rope_utils, to the last constant. In numpy, whose import is most of
what a small model's loading would cost: `rope` needs this module only for stretched contexts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlx_qwen3.model.config import RopeParameters

Frequencies = np.ndarray[Any, np.dtype[Any]]  # (head_dim / 2,), radians per token


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
