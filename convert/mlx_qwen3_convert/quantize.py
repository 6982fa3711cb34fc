"""One piece of a matrix to the bytes of the output, a block of rows at a time.

Reading and packing are apart, so that the next block is read while one is packed.
"""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from mlx_qwen3.model.policy import DTYPES
from mlx_qwen3_convert.plan import Matrix
from mlx_qwen3_convert.readers.base import Source

_BLOCK_BYTES = 16 << 20  # of float32 values held at once


def read_piece(source: Source, matrix: Matrix, piece: int) -> Iterator[list[mx.array]]:
    """A piece's values, evaluated: floats, or weight, scales and biases where they are exact.

    Blocks are whole rows, so that what becomes of them is consecutive in the file.
    Raises WeightsError naming the tensor whose values are no numbers.
    """
    name = matrix.pieces[piece]
    step = max(1, _BLOCK_BYTES // (4 * max(matrix.columns, 1)))
    for start in range(0, matrix.rows, step):
        stop = min(start + step, matrix.rows)
        if matrix.action == "exact":
            rows = source.affine_rows(name, start, stop)
            block = [rows.weight, rows.scales, rows.biases]
        else:
            block = [source.rows(name, start, stop)]
        mx.eval(block)
        yield block


def pack_block(matrix: Matrix, block: list[mx.array]) -> list[memoryview]:
    """A block as bytes: one buffer for each of the matrix's tensors."""
    arrays = _pack(matrix, block)
    mx.eval(arrays)
    return [_bytes(array) for array in arrays]


def _pack(matrix: Matrix, block: list[mx.array]) -> list[mx.array]:
    dtype = DTYPES[matrix.dtype]
    if matrix.stored is None:
        return [_cast(array, dtype) for array in block]
    if matrix.action == "exact":
        return _round_scales(block, dtype, matrix.stored.bits)
    values = block[0]
    if matrix.action == "quantized":
        values = values.astype(dtype)  # as mlx-lm does; unpacked values keep their float32
    return [_cast(part, dtype) for part in mx.quantize(values, **matrix.stored.arguments())]


def _round_scales(block: list[mx.array], dtype: mx.Dtype, bits: int) -> list[mx.array]:
    """Scales and biases to the output's dtype; what its own type can hold is not changed.

    What rounding takes from a scale, its bias gets for the integer in the middle: the error is
    then least at the ends of the range, and half as large as with each rounded for itself.
    """
    weight, scales, biases = block
    rounded = scales.astype(dtype)
    lost = scales - rounded.astype(mx.float32)
    middle = (2**bits - 1) / 2
    return [weight, rounded, (biases + lost * middle).astype(dtype)]


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """Floats to the output's dtype; packed integers and 8-bit scales stay."""
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def _bytes(array: mx.array) -> memoryview:
    """The array's bytes without a copy; bfloat16, which numpy lacks, by way of integers."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.asarray(array)).data.cast("B")
