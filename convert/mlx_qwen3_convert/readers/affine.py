"""Integers with scales, and how MLX packs them.

MLX's affine layout: w = scale * q + bias for each group of 32, 64 or 128 neighbours along the
input; the integers of a row are one stream of bits, the lowest first, in 32-bit words.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwen3_convert.readers.base import AffineLayout, AffineRows
from mlx_qwen3_convert.readers.source import Matrix
from mlx_qwen3_convert.readers.stored import Array, Stored

_BITS = (2, 3, 4, 5, 6, 8)
_GROUP_SIZES = (128, 64, 32)  # the largest that fits needs the fewest scales

# Packed matrices up to this size are read whole, once, when columns of them are asked for.
_WHOLE_BYTES = 64 << 20
_TILE = 128  # rows at a time: their columns share lines of the cache


@dataclass(frozen=True)
class Integers:
    """Rows as w = scale * q + bias.

    values: (rows, in) uint8. scales, biases: (rows, groups) float32, one for `group_size`
    neighbours; the last group may be shorter.
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    biases: NDArray[np.float32]
    group_size: int

    def dequantize(self) -> mx.array:
        """The floats they stand for: (rows, in) float32."""
        rows, width = self.values.shape
        if width % self.group_size:
            scales, biases = (_spread(x, self.group_size, width) for x in self._both)
            return mx.array(self.values * scales + biases)
        grouped = self.values.reshape(rows, -1, self.group_size)
        floats = grouped * self.scales[..., None]
        floats += self.biases[..., None]
        return mx.array(floats.reshape(rows, width))

    def pack(self, layout: AffineLayout) -> AffineRows:
        """In MLX's layout, whose groups may be parts of these."""
        return affine_rows(pack_bits(self.values, layout.bits), *self._both, layout)

    @property
    def _both(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.scales, self.biases


class IntegerMatrix(Matrix):
    """A matrix stored as integers with scales."""

    __slots__ = ()

    @abstractmethod
    def integers(self, start: int, stop: int) -> Integers:
        """Rows start..stop; the range is known to be good."""

    def rows(self, start: int, stop: int) -> mx.array:
        return self.integers(start, stop).dequantize()

    def affine_rows(self, start: int, stop: int) -> AffineRows:
        assert self.tensor.affine is not None  # the source asks only then
        return self.integers(start, stop).pack(self.tensor.affine)


@cache
def affine_layout(bits: int, group_size: int, width: int) -> AffineLayout | None:
    """The MLX layout that holds these integers exactly, None where there is none.

    A group that is longer than MLX's is as many of MLX's with the same scale.
    """
    for ours in _GROUP_SIZES:
        if bits in _BITS and width % ours == 0 and (group_size % ours == 0 or group_size >= width):
            return AffineLayout(bits, ours)
    return None


def affine_rows(
    weight: NDArray[np.uint32],
    scales: NDArray[np.float32],
    biases: NDArray[np.float32],
    layout: AffineLayout,
) -> AffineRows:
    """Packed words with scales for groups as long as the layout's, or longer."""
    groups = weight.shape[1] * 32 // layout.bits // layout.group_size
    times = -(-groups // scales.shape[1])
    scales, biases = (_spread(x, times, groups) for x in (scales, biases))
    return AffineRows(mx.array(weight), mx.array(scales), mx.array(biases))


def _spread(values: NDArray[np.float32], times: int, width: int) -> NDArray[np.float32]:
    """Each value `times` times along the row, up to a width."""
    return values if times == 1 else np.repeat(values, times, axis=1)[:, :width]


def pack_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """(rows, n) of small numbers -> (rows, n * bits / 32) words, eight numbers at a time.

    Eight bytes are one 64-bit word; its gaps are closed by moving the upper half of ever wider
    lanes down: 8 -> 16 -> 32 -> 64 bits.
    """
    lanes = np.ascontiguousarray(values).reshape(-1).view("<u8")
    for lane in (8, 16, 32):
        used = lane * bits // 8
        low = sum(((1 << used) - 1) << start for start in range(0, 64, 2 * lane))
        moved = (lanes >> np.uint64(lane - used)) & np.uint64(low << used)
        lanes = (lanes & np.uint64(low)) | moved
    packed = np.ascontiguousarray(lanes.view(np.uint8).reshape(-1, 8)[:, :bits])
    return packed.reshape(-1).view("<u4").reshape(len(values), -1)


def unpack_bits(words: Array, bits: int) -> NDArray[np.uint8]:
    """(rows, n) words -> (rows, n * 32 / bits) numbers of 2, 4 or 8 bits, the lowest first."""
    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return packed
    values = np.empty((*packed.shape, 8 // bits), np.uint8)
    for place in range(8 // bits):
        values[..., place] = (packed >> (bits * place)) & ((1 << bits) - 1)
    return values.reshape(len(packed), -1)


class Columns:
    """Columns of stored matrices as rows: of formats that pack along the input, or transposed.

    The matrix of the latest call is kept when it is small, since its other columns come next.
    """

    def __init__(self) -> None:
        self._latest: tuple[Stored, Array] | None = None

    def read(self, stored: Stored, start: int, stop: int) -> Array:
        """Columns start..stop, transposed: (stop - start, num_rows)."""
        if stored.nbytes > _WHOLE_BYTES:
            return transpose(stored.read_columns(start, stop))
        latest = self._latest
        if latest is None or latest[0] is not stored:
            self._latest = None  # before the next is read, or both are in memory
            self._latest = latest = (stored, stored.read())
        return transpose(latest[1][:, start:stop])


def transpose(values: Array) -> Array:
    """(n, m) -> (m, n), contiguous, tile by tile: numpy's own copy misses the cache."""
    result = np.empty(values.shape[::-1], values.dtype)
    for row in range(0, values.shape[0], _TILE):
        result[:, row : row + _TILE] = values[row : row + _TILE].T
    return result
