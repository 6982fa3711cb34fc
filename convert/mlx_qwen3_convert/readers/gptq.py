"""GPTQ checkpoints of 2, 4 or 8 bits.

For X of (out, in): X.qweight (in * bits / 32, out) int32, packed along the input, the lowest bits
first; X.scales (groups, out); X.qzeros (groups, out * bits / 32), packed along the output;
X.g_idx (in), the group of each input. w = scale * (q - zero).

A word of qweight is a word of MLX's layout, so that importing is transposing. Not where inputs
were sorted by activation (desc_act): their groups are no neighbours, and rows come as floats.
Reference: GPTQModel (gptqmodel/utils/model.py for the two ways of writing zeros).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwen3.errors import WeightsError
from mlx_qwen3_convert.readers.affine import (
    Columns,
    IntegerMatrix,
    Integers,
    affine_layout,
    affine_rows,
    transpose,
    unpack_bits,
)
from mlx_qwen3_convert.readers.base import AffineRows, Source, SourceTensor
from mlx_qwen3_convert.readers.source import (
    StoredTensors,
    companion,
    integer_source,
)
from mlx_qwen3_convert.readers.stored import FLOATS, Files, Stored

_BITS = (2, 4, 8)
_COMPANIONS = (".qzeros", ".scales", ".g_idx")
_V1, _V2 = "gptq", "gptq_v2"


@dataclass(frozen=True)
class _Settings:
    """What quantize settings say for all matrices; bits and groups are read off the shapes.

    stored_less_one: zeros are stored less one (v1), with borrows across a whole word.
    """

    stored_less_one: bool
    desc_act: bool

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], folder: Path) -> _Settings:
        layout = settings.get("checkpoint_format") or settings.get("format") or _V1
        if layout not in (_V1, _V2) or settings.get("pack_dtype", "int32") != "int32":
            raise WeightsError(
                f"{folder}: GPTQ weights packed as {layout!r} in "
                f"{settings.get('pack_dtype', 'int32')} are not supported; "
                f"expected {_V1!r} or {_V2!r} in int32"
            )
        return cls(layout == _V1, bool(settings.get("desc_act")))


def open_gptq(
    folder: Path, config: Mapping[str, Any], files: Files, settings: Mapping[str, Any]
) -> Source:
    """settings: quantization_config or quantize_config.json. Raises WeightsError."""
    how, columns = _Settings.from_dict(settings, folder), Columns()
    return integer_source(
        folder,
        config,
        files,
        _COMPANIONS,
        lambda stored, prefix: GptqMatrix(stored, prefix, how, columns),
    )


class GptqMatrix(IntegerMatrix):
    """One packed matrix."""

    __slots__ = ("_bits", "_columns", "_group", "_group_of_input", "_how", "_scales", "_weight",
                 "_zeros")  # fmt: skip

    def __init__(
        self, stored: StoredTensors, prefix: str, how: _Settings, columns: Columns
    ) -> None:
        name = f"{prefix}.qweight"
        self._weight, self._how, self._columns = stored[name], how, columns
        self._zeros = companion(stored, name, f"{prefix}.qzeros")
        self._scales = companion(stored, name, f"{prefix}.scales")
        self._group_of_input = stored.get(f"{prefix}.g_idx")
        self._bits, width = _bits_and_width(self._weight, self._zeros)
        self._group = -(-width // self._scales.num_rows)
        self._require_shapes(width)
        self.tensor = self._describe(f"{prefix}.weight", width)

    def parts(self) -> Iterable[Stored]:
        order = [self._group_of_input] if self._group_of_input else []
        return self._weight, self._zeros, self._scales, *order

    def integers(self, start: int, stop: int) -> Integers:
        self._require_neighbours()
        values = unpack_bits(self._words(start, stop), self._bits)
        return Integers(values, *self._scales_and_biases(start, stop), self._group)

    def affine_rows(self, start: int, stop: int) -> AffineRows:
        assert self.tensor.affine is not None  # the source asks only then
        self._require_neighbours()
        both = self._scales_and_biases(start, stop)
        return affine_rows(self._words(start, stop), *both, self.tensor.affine)

    def rows(self, start: int, stop: int) -> mx.array:
        if self._group_of_input is None or not self._how.desc_act:
            return super().rows(start, stop)
        group = self._group_of_input.read()
        if (group >= self._scales.num_rows).any():
            raise WeightsError(f"{self._weight.file}: {self._group_of_input.name} is damaged")
        scales, biases = self._scales_and_biases(start, stop)
        floats = unpack_bits(self._words(start, stop), self._bits) * scales.take(group, axis=1)
        floats += biases.take(group, axis=1)
        return mx.array(floats)

    def _words(self, start: int, stop: int) -> NDArray[np.uint32]:
        return self._columns.read(self._weight, start, stop)

    def _scales_and_biases(
        self, start: int, stop: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(stop - start, groups) each."""
        bits = self._scales.read_columns(start, stop)
        scales = transpose(self._scales.as_float32(bits))
        per_word = 32 // self._bits
        first, last = start // per_word, -(-stop // per_word)
        words = self._zeros.read_columns(first, last)
        if self._how.stored_less_one:
            words = words + np.uint32(sum(1 << place for place in range(0, 32, self._bits)))
        zeros = unpack_bits(words, self._bits)[:, start - first * per_word :][:, : stop - start]
        return scales, transpose(zeros).astype(np.float32) * -scales

    def _require_neighbours(self) -> None:
        """What settings promise of g_idx is checked against it: it would be silently wrong."""
        if self._group_of_input is None or self._scales.num_rows == 1:
            return
        group = self._group_of_input.read()
        if not np.array_equal(group, np.arange(len(group)) // self._group):
            raise WeightsError(
                f"{self._weight.file}: {self._group_of_input.name} is out of order, but "
                "desc_act is false in the quantization settings; set it to true there"
            )

    def _require_shapes(self, width: int) -> None:
        groups, rows = self._scales.num_rows, self._weight.width
        inputs = self._group_of_input.num_rows if self._group_of_input else width
        expected = (groups, rows * self._bits // 32)
        if (
            self._scales.width != rows
            or self._zeros.shape != expected
            or inputs != width
            or -(-width // self._group) != groups
            or self._scales.dtype not in FLOATS
        ):
            raise WeightsError(
                f"{self._weight.file}: {self._weight.name} {self._weight.shape} and its scales "
                f"{self._scales.shape}, zeros {self._zeros.shape} do not fit together"
            )

    def _describe(self, name: str, width: int) -> SourceTensor:
        group, order = self._group, self._group_of_input
        sorted_inputs = self._how.desc_act and order is not None and self._scales.num_rows > 1
        return SourceTensor(
            name,
            (self._weight.width, width),
            f"GPTQ {self._bits}-bit g{group}" + (" desc_act" if sorted_inputs else ""),
            FLOATS[self._scales.dtype],
            sum(part.nbytes for part in self.parts()),
            None if sorted_inputs else affine_layout(self._bits, group, width),
        )


def _bits_and_width(weight: Stored, zeros: Stored) -> tuple[int, int]:
    """Bits of an integer, and the matrix's inputs. Raises WeightsError for other bits."""
    bits = zeros.width * 32 // max(weight.width, 1)
    if bits not in _BITS:
        raise WeightsError(
            f"{weight.file}: {weight.name} has {bits} bits; GPTQ with {_BITS} bits is supported"
        )
    return bits, weight.num_rows * 32 // bits
