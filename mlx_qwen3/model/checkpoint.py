"""A model folder's tensors: which there are, their shapes, and each one lazily.

Only safetensors headers are read until a tensor is evaluated; a header that promises more bytes
than its file has is found here, before anything is computed from it.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import fnmatch
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.errors import WeightsError

_INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100 << 20  # bytes; the format's own limit
# What is in a folder without safetensors, and what its owner should hear.
_REFUSED = {
    "*.gguf": "GGUF files are not run directly",
    "*.bin": "PyTorch .bin files are pickles, which can run code, and are refused",
    "*.pth": "PyTorch .pth files are pickles, which can run code, and are refused",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    dtype: in safetensors' spelling (BF16, U32). offset: bytes from the start of the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


class Checkpoint:
    """The tensors of a folder by the names of the Hugging Face layout."""

    def __init__(self, tensors: dict[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._open: dict[Path, dict[str, mx.array]] = {}
        # Embedding checkpoints are saved without the outer module, hence without its name.
        bare = "embed_tokens.weight" in tensors
        self._strip = "model." if bare else ""

    @classmethod
    def from_folder(cls, folder: str | Path) -> Checkpoint:
        """Read the headers. Raises WeightsError naming the file that is missing or damaged."""
        tensors: dict[str, TensorInfo] = {}
        for file in _files(Path(folder)):
            tensors.update(read_header(file))
        return cls(tensors)

    def __contains__(self, name: str) -> bool:
        return self._stored(name) in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def info(self, name: str) -> TensorInfo:
        """Raises WeightsError when there is no such tensor."""
        try:
            return self.tensors[self._stored(name)]
        except KeyError:
            raise WeightsError(
                f"tensor {name} is missing from the checkpoint; download the model again"
            ) from None

    def take(self, name: str) -> mx.array:
        """The tensor, unevaluated. The checkpoint keeps no reference: a tensor is taken once."""
        file = self.info(name).file
        if file not in self._open:
            self._open[file] = _load(file)
        return self._open[file].pop(self._stored(name))

    def _stored(self, name: str) -> str:
        return name.removeprefix(self._strip) if self._strip else name


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors a safetensors file says it holds.

    Raises WeightsError when the header is not one, or the file is shorter than it promises.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(_MAX_HEADER, size):
            raise WeightsError(f"{file}: not a safetensors file, or cut short; download it again")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _info(file, entry, 8 + length) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
        raise WeightsError(f"{file}: unreadable safetensors header ({exc})") from exc
    if 8 + length + end > size:
        raise WeightsError(
            f"{file}: cut short: {size} bytes, its header promises {8 + length + end}; "
            "download it again"
        )
    return tensors


def _info(file: Path, entry: dict[str, Any], data: int) -> TensorInfo:
    """data: where the tensors' bytes begin, after the header."""
    start, end = entry["data_offsets"]
    return TensorInfo(file, entry["dtype"], tuple(entry["shape"]), end - start, data + start)


def _load(file: Path) -> dict[str, mx.array]:
    try:
        tensors = mx.load(str(file), format="safetensors")
    except (RuntimeError, OSError, ValueError) as exc:
        raise WeightsError(f"{file}: cannot be read ({exc})") from exc
    assert isinstance(tensors, dict)  # for the type checker: other formats load otherwise
    return tensors


def _files(folder: Path) -> list[Path]:
    """The weight files of a folder. Raises WeightsError when there are none, or one is missing."""
    names = weight_files(folder, sorted(path.name for path in folder.glob("*") if path.is_file()))
    return [folder / name for name in names] or _explain_none(folder)


def weight_files(folder: Path, there: Sequence[str]) -> list[str]:
    """The names of a model's weight files: those of its index, or else every safetensors file.

    folder: where the index lies, if there is one. there: the names of all files there are.
    """
    index = folder / _INDEX
    if not index.exists():
        found = fnmatch.filter(there, "*.safetensors")
        return fnmatch.filter(found, "model*") or found
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()), key=str)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise WeightsError(f"{index}: unreadable index ({exc}); download it again") from exc
    for name in names:
        if name not in there:
            raise WeightsError(f"{folder}/{name}: named in {_INDEX} but not there; download it")
    return names


def _explain_none(folder: Path) -> list[Path]:
    for pattern, reason in _REFUSED.items():
        first = next(iter(sorted(folder.glob(pattern))), None)
        if first is not None:
            raise WeightsError(f"{first}: {reason}; expected *.safetensors files in the folder")
    raise WeightsError(f"{folder}: no *.safetensors files; expected a complete model folder")
