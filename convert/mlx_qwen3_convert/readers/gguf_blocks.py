"""GGUF's block types as integers with scales.

Every type stores blocks of 32 or 256 neighbours of a row; each becomes w = scale * q + bias with
groups of 32, which MLX has, or 16, which it has not.
Layouts: https://github.com/ggml-org/ggml, src/ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[Any]  # uint8: (blocks, bytes of a block), or a part of them
Floats = NDArray[np.float32]
# q (blocks, weights) uint8, scales and biases (blocks, groups)
Decoded = tuple[Bytes, Floats, Floats]


@dataclass(frozen=True)
class BlockType:
    """weights, nbytes: of one block. bits: of one integer. group_size: weights with one scale."""

    name: str
    bits: int
    weights: int
    nbytes: int
    group_size: int
    decode: Callable[[Bytes], Decoded]


def _float16(blocks: Bytes, start: int) -> Floats:
    """The float16 at a byte of each block: (blocks, 1)."""
    values = np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2")
    return values.astype(np.float32)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """Each run of bytes: its low halves, then its high ones."""
    runs = packed.reshape(len(packed), -1, 1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(packed), -1)


def _two_bits(packed: Bytes) -> Bytes:
    """Each 32 bytes: all lowest pairs of bits, then all next ones, ...: 128 numbers."""
    runs = packed.reshape(len(packed), -1, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((runs >> shifts) & 3).reshape(len(packed), -1)


def _bit_planes(packed: Bytes) -> Bytes:
    """32 bytes: all lowest bits, then all next ones, ...: 256 numbers."""
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    return ((packed[:, None] >> shifts) & 1).reshape(len(packed), -1)


def _fifth_bits(blocks: Bytes, start: int) -> Bytes:
    """The 32 bits at a byte of each block, in place to be the fifth: (blocks, 32)."""
    bits = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    return bits << 4


def _q4_0(blocks: Bytes) -> Decoded:
    scale = _float16(blocks, 0)
    return _nibbles(blocks[:, 2:], 16), scale, scale * -8


def _q4_1(blocks: Bytes) -> Decoded:
    return _nibbles(blocks[:, 4:], 16), _float16(blocks, 0), _float16(blocks, 2)


def _q5_0(blocks: Bytes) -> Decoded:
    scale = _float16(blocks, 0)
    return _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks, 2), scale, scale * -16


def _q5_1(blocks: Bytes) -> Decoded:
    values = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks, 4)
    return values, _float16(blocks, 0), _float16(blocks, 2)


def _q8_0(blocks: Bytes) -> Decoded:
    scale = _float16(blocks, 0)
    return blocks[:, 2:] ^ 0x80, scale, scale * -128  # signed to unsigned: 128 more


def _q2_k(blocks: Bytes) -> Decoded:
    scale, minimum = _float16(blocks, 80), _float16(blocks, 82)
    both = blocks[:, :16]
    return _two_bits(blocks[:, 16:80]), scale * (both & 15), -minimum * (both >> 4)


def _q3_k(blocks: Bytes) -> Decoded:
    values = _two_bits(blocks[:, 32:96]) | (_bit_planes(blocks[:, :32]) << 2)
    low = _nibbles(blocks[:, 96:104], 8)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = ((blocks[:, None, 104:108] >> shifts) & 3).reshape(len(blocks), 16)
    scales = _float16(blocks, 108) * ((low | (high << 4)).astype(np.float32) - 32)
    return values, scales, scales * -4


def _q4_k(blocks: Bytes) -> Decoded:
    return _nibbles(blocks[:, 16:], 32), *_scales_and_minima(blocks)


def _q5_k(blocks: Bytes) -> Decoded:
    values = _nibbles(blocks[:, 48:], 32) | (_bit_planes(blocks[:, 16:48]) << 4)
    return values, *_scales_and_minima(blocks)


def _scales_and_minima(blocks: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of 6 bits in bytes 4..16, after their two factors."""
    low, high, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 63, (last & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (last >> 4) | (high >> 6 << 4)], axis=1)
    return _float16(blocks, 0) * scales, -_float16(blocks, 2) * minima


def _q6_k(blocks: Bytes) -> Decoded:
    values = _nibbles(blocks[:, :128], 64) | (_two_bits(blocks[:, 128:192]) << 4)
    scales = _float16(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return values, scales, scales * -32


FLOAT_TYPES = {0: "F32", 1: "F16", 30: "BF16"}
BLOCK_TYPES = {
    2: BlockType("Q4_0", 4, 32, 18, 32, _q4_0),
    3: BlockType("Q4_1", 4, 32, 20, 32, _q4_1),
    6: BlockType("Q5_0", 5, 32, 22, 32, _q5_0),
    7: BlockType("Q5_1", 5, 32, 24, 32, _q5_1),
    8: BlockType("Q8_0", 8, 32, 34, 32, _q8_0),
    10: BlockType("Q2_K", 2, 256, 84, 16, _q2_k),
    11: BlockType("Q3_K", 3, 256, 110, 16, _q3_k),
    12: BlockType("Q4_K", 4, 256, 144, 32, _q4_k),
    13: BlockType("Q5_K", 5, 256, 176, 32, _q5_k),
    14: BlockType("Q6_K", 6, 256, 210, 16, _q6_k),
}
# Types that are met and not read, for a message that can name them.
OTHER_TYPES = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
# general.file_type: what a whole file is called.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    21: "Q2_K_S",
    32: "BF16",
}
