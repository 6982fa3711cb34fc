"""What every source format looks like to the converter.

A `Source` is a checkpoint seen as float matrices under their Hugging Face names, experts one by
one, whatever the file stores. Opening one reads headers only; values are read in row slices, and
only what a slice needs is read from disk. Where a format's integers fit MLX's affine layout,
`affine_rows` gives them exactly, so that nothing is quantized a second time.

One file per format beside this one; `open_source` in __init__.py picks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import mlx.core as mx

FloatType = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class AffineLayout:
    """Integers that MLX can hold as they are: w = scale * q + bias, per group along the input."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class AffineRows:
    """Rows of a matrix in MLX's packed affine layout.

    weight: (rows, in * bits / 32) uint32. scales, biases: (rows, in / group_size) float32,
    unrounded: the converter casts them to the dtype that was asked for.
    """

    weight: mx.array
    scales: mx.array
    biases: mx.array


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a source, as the model sees it.

    shape: (out, in) of the unpacked matrix, or (n,) of a norm. format: the source's own word for
    how it is stored ("BF16", "FP8 128x128", "GPTQ 4-bit g128", "Q4_K", "MLX 4-bit g64"). dtype:
    the float type of its values, or of its scales when it is packed. affine: set when
    `affine_rows` can give it exactly. nbytes: what it takes in the source's files.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    dtype: FloatType
    nbytes: int
    affine: AffineLayout | None = None


class Source(Protocol):
    """A checkpoint to convert.

    tensors: in the order in which reading is sequential on disk, names as published checkpoints
    have them: model.layers.0.mlp.experts.3.gate_proj.weight, even where experts are stacked.
    config, generation_config: as the published checkpoint's JSON files would be.
    format: what it is as a whole ("safetensors bf16", "GPTQ", "GGUF Q4_K_M").
    """

    format: str

    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def generation_config(self) -> Mapping[str, Any] | None: ...

    @property
    def licence(self) -> Mapping[str, str]:
        """license, license_name, license_link as a model card has them; empty when not told."""
        ...

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Rows start..stop of a tensor as floats, in its dtype or float32 where it is packed.

        Reads only what these rows need. Raises WeightsError naming tensor and file when the data
        are truncated, or hold NaN or infinity.
        """
        ...

    def affine_rows(self, name: str, start: int, stop: int) -> AffineRows:
        """The same rows as exact integers; only for tensors with `affine` set."""
        ...

    def files_of(self, name: str) -> frozenset[str]:
        """The names of the files that a tensor's rows are read from: companions may lie apart."""
        ...

    def write_side_files(self, folder: Path) -> list[str]:
        """Copy or rebuild tokenizer, chat template and licence files; return their names."""
        ...

    def close(self) -> None:
        """Let go of open files."""
        ...
