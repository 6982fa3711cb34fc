"""Bits in MLX's order."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3_convert.readers.affine import (
    Integers,
    affine_layout,
    pack_bits,
    transpose,
    unpack_bits,
)
from mlx_qwen3_convert.readers.base import AffineLayout


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packed_as_mlx_quantize_packs(bits: int) -> None:
    random = np.random.default_rng(bits)
    values = random.integers(0, 1 << bits, (7, 192), dtype=np.uint8)
    values[:, ::64], values[:, 1::64] = 0, (1 << bits) - 1  # each group spans its range
    floats = mx.array(values.astype(np.float32))
    weight, scales, biases = mx.quantize(floats, group_size=64, bits=bits)
    same = np.array(mx.dequantize(weight, scales, biases, group_size=64, bits=bits))
    assert np.allclose(same, values, atol=1e-4)  # MLX found these integers, up to the sign
    packed = pack_bits(values, bits)
    ones, zeros = mx.ones((7, 3)), mx.zeros((7, 3))
    unpacked = mx.dequantize(mx.array(packed), ones, zeros, group_size=64, bits=bits)
    assert np.array_equal(np.array(unpacked), values)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_unpacking_undoes_packing(bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (5, 64), dtype=np.uint8)
    assert np.array_equal(unpack_bits(pack_bits(values, bits), bits), values)


@pytest.mark.parametrize(
    ("group_size", "width", "expected"),
    [
        (128, 4096, 128),
        (64, 4096, 64),
        (32, 96, 32),
        (256, 4096, 128),  # two of MLX's groups with one scale
        (4096, 4096, 128),
        (96, 96, 32),
        (128, 192, 64),  # the last group is half a one
        (16, 4096, None),
        (48, 96, None),
        (100, 100, None),
    ],
)
def test_the_largest_group_of_mlx_that_fits(
    group_size: int, width: int, expected: int | None
) -> None:
    layout = affine_layout(4, group_size, width)
    assert layout == (None if expected is None else AffineLayout(4, expected))
    assert affine_layout(7, group_size, width) is None


def test_a_last_group_that_is_cut_short_keeps_its_scale() -> None:
    random = np.random.default_rng(1)
    values = random.integers(0, 16, (3, 192), dtype=np.uint8)
    scales, biases = (random.random((3, 2), dtype=np.float32) for _ in range(2))
    integers = Integers(values, scales, biases, 128)
    layout = affine_layout(4, 128, 192)
    assert layout == AffineLayout(4, 64)
    rows = integers.pack(layout)
    unpacked = mx.dequantize(rows.weight, rows.scales, rows.biases, group_size=64, bits=4)
    group = np.arange(192) // 128
    expected = values * scales[:, group] + biases[:, group]
    assert np.allclose(np.array(unpacked), expected, atol=1e-6)
    assert np.allclose(np.array(integers.dequantize()), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (127, 300), (128, 5), (1000, 257)])
def test_transpose_is_numpys(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(2).integers(0, 2**32, shape, dtype=np.uint32)
    found = transpose(values)
    assert np.array_equal(found, values.T)
    assert found.flags["C_CONTIGUOUS"]
