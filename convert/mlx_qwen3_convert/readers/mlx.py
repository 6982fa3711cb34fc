"""Folders that mlx-lm or this package wrote.

Affine matrices pass through as they are. The formats with 8-bit scales (mxfp4, nvfp4, mxfp8) have
no affine form and come as floats. Experts are stacked in switch_mlp, or one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.errors import WeightsError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.linear import Quantization
from mlx_qwen3.model.weights import tensor_shapes
from mlx_qwen3_convert.readers.base import AffineLayout, AffineRows, Source, SourceTensor
from mlx_qwen3_convert.readers.source import (
    FolderSource,
    Matrix,
    StoredTensors,
    companion,
    expert_parts,
    float_matrices,
)
from mlx_qwen3_convert.readers.stored import FLOATS, Files, Stored, not_finite

# The formats with 8-bit scales, by bits and group size; each has exactly one pair.
_SCALED_MODES = {(4, 32): "mxfp4", (4, 16): "nvfp4", (8, 32): "mxfp8"}
_AFFINE_BITS = (1, 2, 3, 4, 5, 6, 8)
_AFFINE_GROUPS = (32, 64, 128)
_COMPANIONS = (".scales", ".biases", ".global_scale")


def open_mlx(folder: Path, config: Mapping[str, Any], files: Files) -> Source:
    """How a matrix is packed is read off its shapes, which cannot be wrong as tables can.

    Raises ConfigError for a config.json that is no Qwen3's, WeightsError for what does not fit it.
    """
    shapes = tensor_shapes(ModelConfig.from_dict(config))

    def make(stored: StoredTensors, name: str) -> Iterator[Matrix]:
        prefix, _, kind = name.rpartition(".")
        packed = f"{prefix}.scales" in stored
        if packed and kind == "weight":
            yield from _packed_matrices(stored, prefix, shapes)
        elif not packed or not name.endswith(_COMPANIONS):
            yield from float_matrices(stored, name)

    return FolderSource(folder, config, files, make)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one packed matrix is made of; the global scale of a stack, and its place in that."""

    weight: Stored
    scales: Stored
    biases: Stored | None
    global_scale: Stored | None
    expert: int


def _packed_matrices(
    stored: StoredTensors, prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Matrix]:
    weight, biases = stored[f"{prefix}.weight"], stored.get(f"{prefix}.biases")
    scales = companion(stored, weight.name, f"{prefix}.scales")
    weights = list(expert_parts(weight.name, weight))
    all_scales = [part for _, part in expert_parts(f"{prefix}.scales", scales)]
    all_biases = [part for _, part in expert_parts(f"{prefix}.biases", biases)] if biases else []
    if len(weights) != len(all_scales) or (biases and len(weights) != len(all_biases)):
        raise WeightsError(f"{weight.file}: tensor {weight.name} and its scales do not fit")
    for index, (name, part) in enumerate(weights):
        parts = _Parts(
            part,
            all_scales[index],
            all_biases[index] if biases else None,
            stored.get(f"{prefix}.global_scale"),
            index,
        )
        yield MlxMatrix(name, parts, shapes.get(name))


class MlxMatrix(Matrix):
    """One matrix as mx.quantize packs it."""

    __slots__ = ("_parts", "_quantization")

    def __init__(self, name: str, parts: _Parts, shape: tuple[int, ...] | None) -> None:
        if shape is None:
            raise WeightsError(
                f"{parts.weight.file}: tensor {name} is not part of this architecture; "
                "config.json and weights do not belong together"
            )
        self._parts = parts
        self._quantization = found = _quantization(name, parts, shape)
        affine = AffineLayout(found.bits, found.group_size) if found.mode == "affine" else None
        kind = f"{found.bits}-bit" if affine else found.mode
        stored = (parts.weight, parts.scales, *([parts.biases] if parts.biases else []))
        self.tensor = SourceTensor(
            name,
            shape,
            f"MLX {kind} g{found.group_size}",
            FLOATS.get(parts.scales.dtype, "bfloat16"),
            sum(part.nbytes for part in stored),
            affine,
        )

    def parts(self) -> Iterable[Stored]:
        found = self._parts
        every = (found.weight, found.scales, found.biases, found.global_scale)
        return [part for part in every if part is not None]

    def rows(self, start: int, stop: int) -> mx.array:
        if self.tensor.affine is None:
            return self._scaled_rows(start, stop)
        rows = self.affine_rows(start, stop)
        arguments = self._quantization.arguments()
        return mx.dequantize(rows.weight, rows.scales, rows.biases, **arguments)

    def affine_rows(self, start: int, stop: int) -> AffineRows:
        weight, scales, biases = self._parts.weight, self._parts.scales, self._parts.biases
        assert biases is not None  # affine matrices have them
        return AffineRows(
            mx.array(weight.read(start, stop)),
            scales.floats(start, stop).astype(mx.float32),
            biases.floats(start, stop).astype(mx.float32),
        )

    def _scaled_rows(self, start: int, stop: int) -> mx.array:
        weight, scales, factor = self._parts.weight, self._parts.scales, self._parts.global_scale
        expert = self._parts.expert
        rows = mx.dequantize(
            mx.array(weight.read(start, stop)),
            mx.array(scales.read(start, stop)),
            global_scale=None if factor is None else factor.floats(expert, expert + 1),
            dtype=mx.float32,
            **self._quantization.arguments(),
        )
        if not mx.isfinite(rows).all():
            raise not_finite(weight.name, weight.file)
        return rows


def _quantization(name: str, parts: _Parts, shape: tuple[int, ...]) -> Quantization:
    """Bits and group size that make these shapes. Raises WeightsError when none do."""
    rows, width = shape if len(shape) == 2 else (0, 0)
    group_size, rest = divmod(width, max(parts.scales.width, 1))
    bits, part = divmod(parts.weight.width * 32, max(width, 1))
    same_rows = parts.weight.num_rows == parts.scales.num_rows == rows
    if same_rows and not rest and not part and parts.weight.dtype == "U32":
        if parts.scales.dtype == "U8" and (bits, group_size) in _SCALED_MODES:
            return Quantization(group_size, bits, _SCALED_MODES[bits, group_size])
        known = bits in _AFFINE_BITS and group_size in _AFFINE_GROUPS
        if known and parts.biases and parts.biases.shape == parts.scales.shape:
            return Quantization(group_size, bits)
    raise WeightsError(
        f"{parts.weight.file}: tensor {name} of shape {parts.weight.shape} with scales "
        f"{parts.scales.shape} ({parts.scales.dtype}) is no MLX quantization of {shape}"
    )
