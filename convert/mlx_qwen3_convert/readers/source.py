"""A `Source` made of matrices: what the formats share.

A format turns stored tensors into `Matrix` objects, each of which reads rows of one tensor of
the model. A folder of one format may hold matrices of others: routers and embeddings stay
floats beside packed projections.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.errors import ConfigError, OptionError, WeightsError
from mlx_qwen3_convert.readers.base import AffineRows, SourceTensor
from mlx_qwen3_convert.readers.licence import folder_licence
from mlx_qwen3_convert.readers.stored import FLOATS, Files, Stored, stored_tensors

# What is copied from a folder beside its weights.
_SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "LICENSE*",
)
# Tensors that published checkpoints carry and no model needs.
_UNUSED = (".rotary_emb.inv_freq",)
# Keys of config.json that say how a checkpoint is packed, not what the model is.
_PACKING_KEYS = ("quantization", "quantization_config")


class Matrix(ABC):
    """One tensor of the model and how its rows are read."""

    __slots__ = ("tensor",)
    tensor: SourceTensor

    @abstractmethod
    def parts(self) -> Iterable[Stored]:
        """The stored tensors that its rows are made of."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> mx.array:
        """As `Source.rows`; the range is known to be good."""

    def affine_rows(self, start: int, stop: int) -> AffineRows:
        """As `Source.affine_rows`; only asked when the tensor has `affine` set."""
        raise NotImplementedError


class FloatMatrix(Matrix):
    """A tensor stored as floats."""

    __slots__ = ("_stored",)

    def __init__(self, name: str, stored: Stored, shape: tuple[int, ...] | None = None) -> None:
        self._stored = stored
        if stored.dtype not in FLOATS:
            raise WeightsError(
                f"{stored.file}: tensor {stored.name} holds {stored.dtype} numbers; expected "
                f"{', '.join(FLOATS)}, or a quantization that config.json describes"
            )
        dtype = FLOATS[stored.dtype]
        shape = stored.shape if shape is None else shape
        self.tensor = SourceTensor(name, shape, stored.dtype, dtype, stored.nbytes)

    def parts(self) -> Iterable[Stored]:
        return (self._stored,)

    def rows(self, start: int, stop: int) -> mx.array:
        return self._stored.floats(start, stop)


StoredTensors = Mapping[str, Stored]
# Makes the matrices whose data begin with the stored tensor of this name: none, one, or a stack.
MakeMatrices = Callable[[StoredTensors, str], Iterable[Matrix]]


def float_matrices(stored: StoredTensors, name: str) -> Iterator[Matrix]:
    """A tensor of floats, or the experts stacked in it."""
    for one, part in expert_parts(name, stored[name]):
        yield FloatMatrix(one, part)


def companion(stored: StoredTensors, name: str, other: str) -> Stored:
    """The tensor that belongs to another. Raises WeightsError when it is missing."""
    if other not in stored:
        raise WeightsError(f"{stored[name].file}: tensor {name} has no {other} beside it")
    return stored[other]


def is_filler_bias(stored: StoredTensors, name: str, config: Mapping[str, Any]) -> bool:
    """Whether this is a bias of zeros that a packer gave to a projection without one."""
    prefix, _, kind = name.rpartition(".")
    if kind != "bias" or f"{prefix}.qweight" not in stored or config.get("attention_bias"):
        return False
    return stored[name].files.all_zero(stored[name])


def expert_parts(name: str, stored: Stored) -> Iterator[tuple[str, Stored]]:
    """A stacked tensor's experts by published name; any other tensor as it is.

    transformers 5: mlp.experts.gate_up_proj (E, 2 I, H), gate rows first, and mlp.experts.down_proj
    (E, H, I). MLX: mlp.switch_mlp.{gate,up,down}_proj.{weight,scales,biases} (E, out, in).
    """
    head, _, tail = name.partition(".mlp.")
    for stack, parts in _STACKS.items():
        if tail.startswith(stack) and len(stored.shape) == 3:
            suffix = tail.removeprefix(stack) or ".weight"
            rows, rest = divmod(stored.shape[1], len(parts))
            if rest:
                raise WeightsError(f"{stored.file}: tensor {name} has an odd number of rows")
            for index in range(stored.shape[0] * len(parts)):
                expert, part = divmod(index, len(parts))
                published = f"{head}.mlp.experts.{expert}.{parts[part]}{suffix}"
                yield published, stored.part(index * rows, rows)
            return
    yield name, stored


_STACKS = {
    "experts.gate_up_proj": ("gate_proj", "up_proj"),
    "experts.down_proj": ("down_proj",),
    "switch_mlp.gate_proj": ("gate_proj",),
    "switch_mlp.up_proj": ("up_proj",),
    "switch_mlp.down_proj": ("down_proj",),
}


class MatrixSource(ABC):
    """A `Source` over matrices that its subclass found."""

    def __init__(
        self, format: str, matrices: Mapping[str, Matrix], config: Mapping[str, Any], files: Files
    ) -> None:
        self.format = format
        self._matrices = matrices
        self._tensors = {name: matrix.tensor for name, matrix in matrices.items()}
        self._config = config
        self._files = files

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        """Every tensor of the model, in the order of the bytes on disk."""
        return self._tensors

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json without what it says of packing."""
        return self._config

    @property
    @abstractmethod
    def generation_config(self) -> Mapping[str, Any] | None:
        """generation_config.json, None where there is none."""

    @property
    @abstractmethod
    def licence(self) -> Mapping[str, str]:
        """As `Source.licence`."""

    @abstractmethod
    def write_side_files(self, folder: Path) -> list[str]:
        """As `Source.write_side_files`."""

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """As `Source.rows`."""
        return self._matrix(name, start, stop).rows(start, stop)

    def affine_rows(self, name: str, start: int, stop: int) -> AffineRows:
        """As `Source.affine_rows`. Raises OptionError for a tensor without `affine`."""
        matrix = self._matrix(name, start, stop)
        if matrix.tensor.affine is None:
            raise OptionError(f"{name}: {matrix.tensor.format} has no exact affine form")
        return matrix.affine_rows(start, stop)

    def files_of(self, name: str) -> frozenset[str]:
        """As `Source.files_of`."""
        return frozenset(part.file.name for part in self._matrices[name].parts())

    def close(self) -> None:
        """Let go of open files."""
        self._files.close()

    def _matrix(self, name: str, start: int, stop: int) -> Matrix:
        matrix = self._matrices.get(name)
        if matrix is None:
            raise WeightsError(f"tensor {name} is missing from the checkpoint")
        if not 0 <= start < stop <= matrix.tensor.shape[0]:
            raise OptionError(
                f"{name}: rows {start} to {stop} were asked for; it has {matrix.tensor.shape[0]}"
            )
        return matrix


class FolderSource(MatrixSource):
    """A folder of safetensors files, config.json and tokenizer files."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        files: Files,
        make: MakeMatrices = float_matrices,
    ) -> None:
        """config: config.json, packing keys included; make: the format's own."""
        self._folder = folder
        stored = stored_tensors(folder, files)
        matrices = _matrices(stored, make, tied=bool(config.get("tie_word_embeddings")))
        plain = {key: value for key, value in config.items() if key not in _PACKING_KEYS}
        super().__init__(_format(matrices), matrices, plain, files)

    @property
    def generation_config(self) -> Mapping[str, Any] | None:
        """generation_config.json. Raises ConfigError when it is there and broken."""
        return read_json(self._folder / "generation_config.json")

    @property
    def licence(self) -> Mapping[str, str]:
        """As README.md or a LICENSE file says."""
        return folder_licence(self._folder)

    def write_side_files(self, folder: Path) -> list[str]:
        """Copy tokenizer, chat template and licence files; return their names."""
        found = [file for pattern in _SIDE_FILES for file in sorted(self._folder.glob(pattern))]
        names = [str(file.relative_to(self._folder)) for file in found if file.is_file()]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._folder / name, folder / name)
        return names


def _matrices(stored: StoredTensors, make: MakeMatrices, *, tied: bool) -> dict[str, Matrix]:
    """What the model needs of what is stored: a tied head and RoPE's frequencies are derived."""
    needed = (
        name
        for name in stored
        if not name.endswith(_UNUSED) and not (tied and name.startswith("lm_head."))
    )
    return {matrix.tensor.name: matrix for name in needed for matrix in make(stored, name)}


def _format(matrices: Mapping[str, Matrix]) -> str:
    """ "safetensors bf16", or the format by its own name where it is packed."""
    packed = {n: m for n, m in matrices.items() if m.tensor.format not in FLOATS}
    return main_format(packed) if packed else f"safetensors {main_format(matrices).lower()}"


def main_format(matrices: Mapping[str, Matrix]) -> str:
    """The format that most bytes of the matrices are in."""
    sizes: dict[str, int] = {}
    for matrix in matrices.values():
        tensor = matrix.tensor
        sizes[tensor.format] = sizes.get(tensor.format, 0) + tensor.nbytes
    return max(sizes, key=sizes.__getitem__, default="empty")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is no such file. Raises ConfigError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: cannot be read as JSON ({exc}); download it again") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def integer_source(
    folder: Path,
    config: Mapping[str, Any],
    files: Files,
    companions: tuple[str, ...],
    make_matrix: Callable[[StoredTensors, str], Matrix],
) -> FolderSource:
    """A folder whose matrices are X.qweight with `companions` beside it; the rest are floats.

    make_matrix: (stored tensors, X) -> the matrix.
    """

    def make(stored: StoredTensors, name: str) -> Iterator[Matrix]:
        prefix, _, kind = name.rpartition(".")
        if kind == "qweight":
            yield make_matrix(stored, prefix)
        elif f"{prefix}.qweight" in stored and name.endswith(companions):
            return
        elif not is_filler_bias(stored, name, config):
            yield from float_matrices(stored, name)

    return FolderSource(folder, config, files, make)
