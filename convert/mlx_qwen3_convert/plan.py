"""What will be written, decided before anything is read: every output tensor and its origin.

A plan is made from headers alone. It holds one `Matrix` for every module of the model, in the
order of the model, and knows each one's format, where its values come from and why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mlx_qwen3.errors import OptionError, WeightsError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.linear import Quantization
from mlx_qwen3.model.weights import tensor_shapes
from mlx_qwen3_convert.formats import Format, describe
from mlx_qwen3_convert.readers.base import FloatType, Source, SourceTensor
from mlx_qwen3_convert.recipes import Recipe

# copied: floats as they were (cast where the dtype differs). exact: integers repacked, nothing
# lost. quantized: from floats. requantized: from another quantization, by way of floats.
Action = Literal["copied", "exact", "quantized", "requantized"]

FLOAT_NAMES: Mapping[FloatType, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_FLOAT_BYTES: Mapping[FloatType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the output file. dtype in safetensors' spelling; nbytes in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Matrix:
    """One module of the output: a matrix, a stack of experts, a norm or a bias.

    path: as recipes spell it. name: as the output spells it, with ".weight" or ".bias".
    pieces: the source tensors stacked in it, one for each expert, or one. rows, columns: of a
    piece; columns is 0 for a vector.
    """

    path: str
    name: str
    pieces: tuple[str, ...]
    rows: int
    columns: int
    stored: Format
    action: Action
    origin: str
    dtype: FloatType

    def tensors(self) -> list[OutputTensor]:
        """What it becomes in the file: one tensor, or weight, scales and biases."""
        leading = (len(self.pieces), self.rows) if "experts" in self.path else (self.rows,)
        shape = (*leading, self.columns) if self.columns else leading
        if self.stored is None:
            return [self._tensor(self.name, FLOAT_NAMES[self.dtype], shape)]
        module = self.name.removesuffix(".weight")
        packed = (*leading, self.columns * self.stored.bits // 32)
        groups = (*leading, self.columns // self.stored.group_size)
        weight = self._tensor(f"{module}.weight", "U32", packed)
        if self.stored.mode != "affine":
            return [weight, self._tensor(f"{module}.scales", "U8", groups)]
        scales = FLOAT_NAMES[self.dtype]
        return [
            weight,
            self._tensor(f"{module}.scales", scales, groups),
            self._tensor(f"{module}.biases", scales, groups),
        ]

    @property
    def weights(self) -> int:
        """How many weights it holds."""
        return len(self.pieces) * self.rows * max(self.columns, 1)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def _tensor(self, name: str, dtype: str, shape: tuple[int, ...]) -> OutputTensor:
        size = {"U32": 4, "U8": 1, "F32": 4}.get(dtype, 2)
        return OutputTensor(name, dtype, shape, math.prod(shape) * size)


@dataclass(frozen=True)
class Plan:
    """Everything that will be written. recipe: None when a quantized source is imported."""

    matrices: tuple[Matrix, ...]
    recipe: Recipe | None
    dtype: FloatType

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in the output."""
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight over the whole model, scales and unquantized parts included."""
        return 8 * self.nbytes / sum(matrix.weights for matrix in self.matrices)

    def quantization(self) -> dict[str, object] | None:
        """config.json's "quantization": the commonest format, and every module that differs.

        None when nothing is quantized.
        """
        packed = [matrix for matrix in self.matrices if matrix.stored is not None]
        if not packed:
            return None
        sizes: dict[Quantization, int] = {}
        for matrix in packed:
            assert matrix.stored is not None
            sizes[matrix.stored] = sizes.get(matrix.stored, 0) + matrix.weights
        default = max(sizes, key=lambda stored: sizes[stored])
        others: dict[str, object] = {
            matrix.name.removesuffix(".weight"): matrix.stored.arguments()
            for matrix in packed
            if matrix.stored is not None and matrix.stored != default
        }
        return {**default.arguments(), **others}


def make_plan(source: Source, *, recipe: Recipe | None, fallback: Recipe, dtype: FloatType) -> Plan:
    """Decide every output tensor.

    recipe: None imports what is quantized as it is, and leaves floats alone; where that cannot
    be (no exact layout) the next higher bits are taken; an unquantized source gets `fallback`.
    Raises WeightsError for tensors that are missing, misshapen or not part of the architecture.
    """
    config = ModelConfig.from_dict(source.config)
    shapes = tensor_shapes(config)
    _check_tensors(source, shapes, tied=config.tie_word_embeddings)
    if recipe is None and not any(_is_packed(tensor) for tensor in source.tensors.values()):
        recipe = fallback
    groups = list(_groups(shapes))
    if recipe is not None:
        matrices = [path for path, names in groups if len(shapes[names[0]]) == 2]
        recipe.check(matrices)
    return Plan(
        tuple(_matrix(source, path, names, shapes, recipe, dtype) for path, names in groups),
        recipe,
        dtype,
    )


def exact_dtype(source: Source) -> FloatType | None:
    """The type that most of an exact import's scales are stored in; None where nothing is exact.

    config.json may name another, and another rounds them: bfloat16 has 8 of float16's 11 bits.
    """
    sizes: dict[FloatType, int] = {}
    for tensor in source.tensors.values():
        if tensor.affine is not None:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def _groups(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, list[str]]]:
    """(recipe path, source names) of every output module, in the model's order."""
    stacks: dict[str, list[str]] = {}
    for name in shapes:
        module = name.removesuffix(".weight") if len(shapes[name]) == 2 else name
        stacks.setdefault(_EXPERT.sub(".experts.", module), []).append(name)
    yield from stacks.items()


def _matrix(
    source: Source,
    path: str,
    names: list[str],
    shapes: Mapping[str, tuple[int, ...]],
    recipe: Recipe | None,
    dtype: FloatType,
) -> Matrix:
    shape = shapes[names[0]]
    origins = [source.tensors[name] for name in names]
    stored, action = _decide(path, shape, origins, recipe)
    return Matrix(
        path=path,
        name=_EXPERT.sub(".switch_mlp.", names[0]),
        pieces=tuple(names),
        rows=shape[0],
        columns=shape[1] if len(shape) == 2 else 0,
        stored=stored,
        action=action,
        origin=origins[0].format,
        dtype=dtype,
    )


def _decide(
    path: str, shape: tuple[int, ...], origins: list[SourceTensor], recipe: Recipe | None
) -> tuple[Format, Action]:
    if len(shape) != 2:
        return None, "copied"
    exact = _exact_format(origins)
    if recipe is None:
        wanted = exact or _next_higher(origins[0])
    else:
        wanted = recipe.format_of(path)
    if wanted is not None and shape[1] % wanted.group_size:
        wanted = None  # as mlx-lm does: a row must be whole groups
    packed = any(_is_packed(origin) for origin in origins)
    if wanted is None:
        return None, "copied"
    if wanted == exact:
        return wanted, "exact"
    return wanted, "requantized" if packed else "quantized"


def _exact_format(origins: list[SourceTensor]) -> Quantization | None:
    """The layout all pieces can be repacked into, if they share one."""
    layouts = {origin.affine for origin in origins}
    layout = layouts.pop() if len(layouts) == 1 else None
    return None if layout is None else Quantization(layout.group_size, layout.bits)


def _is_packed(tensor: SourceTensor) -> bool:
    return tensor.affine is not None or tensor.format not in FLOAT_NAMES.values()


def _next_higher(tensor: SourceTensor) -> Format:
    """Where a quantized source has no exact layout: the affine bits above its own."""
    if not _is_packed(tensor):
        return None
    bits_per_weight = 8 * tensor.nbytes / math.prod(tensor.shape)
    bits = next((bits for bits in (3, 4, 5, 6, 8) if bits >= bits_per_weight), 8)
    return Quantization(64, bits)


def _check_tensors(source: Source, shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> None:
    for name, shape in shapes.items():
        tensor = source.tensors.get(name)
        if tensor is None:
            raise WeightsError(f"tensor {name} is missing from the source; download it again")
        if tensor.shape != shape:
            raise WeightsError(
                f"tensor {name} has shape {tensor.shape}; config.json makes it {shape}: "
                "they do not belong together"
            )
    extra = sorted(set(source.tensors) - set(shapes))
    extra = [name for name in extra if not (tied and name == "lm_head.weight")]
    if extra:
        raise WeightsError(
            f"tensor {extra[0]} is not part of this architecture; "
            "config.json and weights do not belong together"
        )


def report(plan: Plan) -> list[dict[str, object]]:
    """A line of facts for each output module."""
    return [
        {
            "name": matrix.name,
            "from": matrix.origin,
            "to": describe(matrix.stored) if matrix.stored else FLOAT_NAMES[matrix.dtype],
            "action": matrix.action,
            "bytes": matrix.nbytes,
        }
        for matrix in plan.matrices
    ]


def require_dtype(name: str) -> FloatType:
    """A dtype option. Raises OptionError for others."""
    for known in FLOAT_NAMES:
        if known == name:
            return known
    raise OptionError(f"dtype is {name!r}; expected one of {', '.join(FLOAT_NAMES)}")
