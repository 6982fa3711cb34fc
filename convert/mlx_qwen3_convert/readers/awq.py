"""AWQ checkpoints in AutoAWQ's "gemm" layout, 4 bits.

For X of (out, in): X.qweight (in, out / 8) int32, packed along the output; X.qzeros
(groups, out / 8) packed likewise; X.scales (groups, out). w = scale * (q - zero).
The eight integers of a word are those of outputs 0 2 4 6 1 3 5 7, the lowest bits first.
Reference: AutoAWQ (awq/modules/linear/gemm.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_qwen3.errors import WeightsError
from mlx_qwen3_convert.readers.affine import (
    Columns,
    IntegerMatrix,
    Integers,
    affine_layout,
    transpose,
)
from mlx_qwen3_convert.readers.base import Source, SourceTensor
from mlx_qwen3_convert.readers.source import (
    StoredTensors,
    companion,
    integer_source,
)
from mlx_qwen3_convert.readers.stored import FLOATS, Files, Stored

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS, _PER_WORD = 4, 8
_COMPANIONS = (".qzeros", ".scales")
# What computes with the gemm layout, by the names settings give it.
_VERSIONS = ("gemm", "exllama", "ipex")


def open_awq(
    folder: Path, config: Mapping[str, Any], files: Files, settings: Mapping[str, Any]
) -> Source:
    """settings: quantization_config or quant_config.json. Raises WeightsError."""
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    bits = settings.get("bits", settings.get("w_bit", _BITS))
    if version not in _VERSIONS or bits != _BITS:
        raise WeightsError(
            f"{folder}: AWQ weights of {bits} bits in {version!r} layout are not supported; "
            "expected 4 bits in 'gemm' layout"
        )
    columns = Columns()
    return integer_source(
        folder,
        config,
        files,
        _COMPANIONS,
        lambda stored, prefix: AwqMatrix(stored, prefix, columns),
    )


class AwqMatrix(IntegerMatrix):
    """One packed matrix."""

    __slots__ = ("_columns", "_group", "_scales", "_weight", "_zeros")

    def __init__(self, stored: StoredTensors, prefix: str, columns: Columns) -> None:
        name = f"{prefix}.qweight"
        self._weight, self._columns = stored[name], columns
        self._zeros = companion(stored, name, f"{prefix}.qzeros")
        self._scales = companion(stored, name, f"{prefix}.scales")
        width, groups = self._weight.num_rows, self._scales.num_rows
        self._group = -(-width // max(groups, 1))
        rows = self._weight.width * _PER_WORD
        if (
            self._scales.shape != (groups, rows)
            or self._zeros.shape != (groups, rows // _PER_WORD)
            or -(-width // max(self._group, 1)) != groups
            or self._scales.dtype not in FLOATS
        ):
            raise WeightsError(
                f"{self._weight.file}: {self._weight.name} {self._weight.shape} and its scales "
                f"{self._scales.shape}, zeros {self._zeros.shape} do not fit together"
            )
        self.tensor = SourceTensor(
            f"{prefix}.weight",
            (rows, width),
            f"AWQ {_BITS}-bit g{self._group}",
            FLOATS[self._scales.dtype],
            sum(part.nbytes for part in self.parts()),
            affine_layout(_BITS, self._group, width),
        )

    def parts(self) -> Iterable[Stored]:
        return self._weight, self._zeros, self._scales

    def integers(self, start: int, stop: int) -> Integers:
        first, last = start // _PER_WORD, -(-stop // _PER_WORD)
        rows = slice(start - first * _PER_WORD, stop - first * _PER_WORD)
        bits = self._scales.read_columns(start, stop)
        scales = transpose(self._scales.as_float32(bits))
        zeros = _unpack(transpose(self._zeros.read_columns(first, last)))[rows]
        values = _unpack(self._columns.read(self._weight, first, last))[rows]
        return Integers(values, scales, zeros.astype(np.float32) * -scales, self._group)


def _unpack(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """(rows / 8, n) words, each of eight rows -> (rows, n)."""
    values = np.empty((len(words), _PER_WORD, words.shape[1]), np.uint8)
    for place, row in enumerate(_ORDER):
        values[:, row] = (words >> np.uint32(_BITS * place)) & np.uint32(15)
    return values.reshape(-1, words.shape[1])
