"""A plain quantizer for ggml's K-quants, which the gguf package can only read.

Not llama.cpp's (which searches for better scales), but in its layout: super-blocks of 256 weights
as in ggml-common.h. The gguf package's own dequantizer is what checks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_WEIGHTS = 256


def quantize(values: Array, kind: str) -> Array:
    """(..., n * 256) float32 -> (..., n * bytes of a block) uint8."""
    blocks = values.reshape(-1, _WEIGHTS).astype(np.float32)
    packed = _QUANTIZERS[kind](blocks)
    return packed.reshape(*values.shape[:-1], -1)


def _divide(values: Array, by: Array) -> Array:
    return np.divide(values, by, out=np.zeros_like(values), where=by != 0)


def _with_minima(blocks: Array, bits: int, groups: int, levels: int) -> tuple[Array, ...]:
    """q, scales, minima and their two float16 factors: w = d * scale * q - dmin * minimum."""
    grouped = blocks.reshape(len(blocks), groups, -1)
    lowest = np.minimum(grouped.min(-1), 0)
    scale, minimum = (grouped.max(-1) - lowest) / (2**bits - 1), -lowest
    factors = [(x.max(-1, keepdims=True) / levels).astype("<f2") for x in (scale, minimum)]
    d, dmin = (x.astype(np.float32) for x in factors)
    scales = np.clip(np.rint(_divide(scale, d)), 0, levels).astype(np.uint8)
    minima = np.clip(np.rint(_divide(minimum, dmin)), 0, levels).astype(np.uint8)
    step, lowest = (d * scales)[..., None], (dmin * minima)[..., None]
    q = np.clip(np.rint(_divide(grouped + lowest, step)), 0, 2**bits - 1).astype(np.uint8)
    return q.reshape(len(blocks), -1), scales, minima, *factors


def _symmetric(blocks: Array, bits: int, levels: int) -> tuple[Array, Array, Array]:
    """q (offset by half its range), signed scales of 16 weights each, and their factor."""
    half = 2 ** (bits - 1)
    grouped = blocks.reshape(len(blocks), 16, 16)
    scale = np.abs(grouped).max(-1) / half
    factor = (scale.max(-1, keepdims=True) / levels).astype("<f2")
    d = factor.astype(np.float32)
    scales = np.clip(np.rint(_divide(scale, d)), -levels, levels).astype(np.int8)
    q = np.clip(np.rint(_divide(grouped, (d * scales)[..., None])), -half, half - 1) + half
    return q.reshape(len(blocks), -1).astype(np.uint8), scales, factor


def _planes(values: Array, run: int, bits: int) -> Array:
    """Numbers of `bits` bits, `run` neighbours in a run of bytes, 8 / bits runs in each."""
    runs = values.reshape(len(values), -1, 8 // bits, run)
    packed = sum(runs[:, :, place] << (bits * place) for place in range(8 // bits))
    return np.asarray(packed, np.uint8).reshape(len(values), -1)


def _six_bit_pairs(scales: Array, minima: Array) -> Array:
    low = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    middle = minima[:, :4] | (minima[:, 4:] >> 4 << 6)
    return np.concatenate([low, middle, (scales[:, 4:] & 15) | (minima[:, 4:] << 4)], axis=1)


def _join(*parts: Array) -> Array:
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


def _q2_k(blocks: Array) -> Array:
    q, scales, minima, d, dmin = _with_minima(blocks, 2, 16, 15)
    return _join(scales | (minima << 4), _planes(q, 32, 2), d, dmin)


def _q3_k(blocks: Array) -> Array:
    q, signed, d = _symmetric(blocks, 3, 31)
    scales = (signed + 32).astype(np.uint8)
    packed = [_planes(scales & 15, 8, 4), _planes(scales >> 4, 4, 2)]
    return _join(_planes(q >> 2, 32, 1), _planes(q & 3, 32, 2), *packed, d)


def _q4_k(blocks: Array) -> Array:
    q, scales, minima, d, dmin = _with_minima(blocks, 4, 8, 63)
    return _join(d, dmin, _six_bit_pairs(scales, minima), _planes(q, 32, 4))


def _q5_k(blocks: Array) -> Array:
    q, scales, minima, d, dmin = _with_minima(blocks, 5, 8, 63)
    six = _six_bit_pairs(scales, minima)
    return _join(d, dmin, six, _planes(q >> 4, 32, 1), _planes(q & 15, 32, 4))


def _q6_k(blocks: Array) -> Array:
    q, scales, d = _symmetric(blocks, 6, 127)
    return _join(_planes(q & 15, 64, 4), _planes(q >> 4, 32, 2), scales, d)


_QUANTIZERS: dict[str, Callable[[Array], Array]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
