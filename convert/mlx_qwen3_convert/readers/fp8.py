"""Block-wise FP8, as the -FP8 releases have it.

X.weight: (out, in) bytes, float8 e4m3; X.weight_scale_inv: one factor for each block of 128x128,
the last blocks partial where the sizes are no multiples. w = fp8 * scale.
Reference: transformers' finegrained_fp8 integration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwen3.errors import ConfigError, WeightsError
from mlx_qwen3_convert.readers.base import FloatType, Source, SourceTensor
from mlx_qwen3_convert.readers.source import (
    FolderSource,
    Matrix,
    StoredTensors,
    companion,
    expert_parts,
    float_matrices,
)
from mlx_qwen3_convert.readers.stored import Files, Stored, not_finite

Block = tuple[int, int]
_NAN = 0x7F  # the one pattern that is no number, with either sign
_FLOAT_TYPES: dict[Any, FloatType] = {"float16": "float16", "float32": "float32"}


def open_fp8(
    folder: Path, config: Mapping[str, Any], files: Files, settings: Mapping[str, Any]
) -> Source:
    """settings: quantization_config. Raises ConfigError for a block size that is none."""
    block = _block(settings.get("weight_block_size"), folder)
    dtype = _FLOAT_TYPES.get(config.get("torch_dtype") or config.get("dtype"), "bfloat16")

    def make(stored: StoredTensors, name: str) -> Iterator[Matrix]:
        if name.endswith(("_scale_inv", ".activation_scale", ".input_scale")):
            return  # belongs to a weight, or to activations that MLX does not quantize
        if stored[name].dtype == "F8_E4M3":
            yield from _fp8_matrices(stored, name, block, dtype)
        else:
            yield from float_matrices(stored, name)

    return FolderSource(folder, config, files, make)


def _block(value: Any, folder: Path) -> Block | None:
    """None: one scale for the whole tensor."""
    if value is None:
        return None
    match value:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise ConfigError(f"{folder}/config.json: weight_block_size is {value!r}; expected [128, 128]")


def _fp8_matrices(
    stored: StoredTensors, name: str, block: Block | None, dtype: FloatType
) -> Iterator[Matrix]:
    """One matrix, or a stack's experts; a stack has its blocks counted from each expert's top."""
    whole = stored[name]
    scales = companion(stored, name, f"{name}_scale_inv")
    rows = whole.shape[-2]
    size = block or (rows, whole.width)
    per_matrix = -(-rows // size[0])
    count = whole.num_rows // rows
    if scales.num_rows * scales.width != count * per_matrix * -(-whole.width // size[1]):
        raise WeightsError(
            f"{scales.file}: tensor {scales.name} has shape {scales.shape}, which is not one "
            f"scale for each {size[0]}x{size[1]} block of {whole.shape}"
        )
    grid = scales.reshaped(count * per_matrix, -(-whole.width // size[1]))
    kind = f"FP8 {block[0]}x{block[1]}" if block else "FP8"
    for one, part in expert_parts(name, whole):
        matrix, first = divmod((part.offset - whole.offset) // whole.row_bytes, rows)
        own = grid.part(matrix * per_matrix, per_matrix)
        nbytes = part.nbytes + own.nbytes
        tensor = SourceTensor(one, part.shape, kind, dtype, nbytes)
        yield Fp8Matrix(tensor, part, own, size, first)


class Fp8Matrix(Matrix):
    """Rows of an FP8 matrix; `first` rows of the matrix its blocks are counted in lie above."""

    __slots__ = ("_block", "_first", "_scales", "_weight")

    def __init__(
        self, tensor: SourceTensor, weight: Stored, scales: Stored, block: Block, first: int
    ) -> None:
        self.tensor = tensor
        self._weight, self._scales, self._block, self._first = weight, scales, block, first

    def parts(self) -> Iterable[Stored]:
        return self._weight, self._scales

    def rows(self, start: int, stop: int) -> mx.array:
        codes = self._weight.read(start, stop)
        if ((codes & _NAN) == _NAN).any():
            raise not_finite(self._weight.name, self._weight.file)
        return mx.array(self._scaled(_e4m3()[codes], start + self._first))

    def _scaled(self, values: NDArray[np.float32], first: int) -> NDArray[np.float32]:
        """Multiply by the blocks' scales, a row of blocks at a time."""
        height, width = self._block
        last = first + len(values)
        scales = self._scales.float32(first // height, -(-last // height))
        for index, factors in enumerate(scales):
            top = (first // height + index) * height - first
            columns = np.repeat(factors, width)[: values.shape[1]]
            values[max(top, 0) : top + height] *= columns
        return values


def _e4m3() -> NDArray[np.float32]:
    """The 256 values: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    return np.where(codes < 128, values, -values).astype(np.float32)
