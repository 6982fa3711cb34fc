"""The GGUF container: metadata and where each tensor lies.

Read here rather than with the `gguf` package, whose reader takes seconds and 400 MB for a
vocabulary of 152 thousand tokens. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlx_qwen3.errors import WeightsError

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_ALIGNMENT = 32  # bytes, where the metadata name no other
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's place. shape: outermost first, as everywhere but in the file itself.

    type: ggml's number of the block type. offset: bytes from the start of the file.
    """

    file: Path
    name: str
    type: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class GgufContainer:
    """One file's metadata and tensors, the latter in the order of their bytes."""

    file: Path
    size: int
    metadata: dict[str, Any]
    tensors: list[GgufTensor]


def read_container(file: Path) -> GgufContainer:
    """Read the header of a GGUF file. Raises WeightsError when it is damaged or of another kind."""
    try:
        size = file.stat().st_size
        with file.open("rb", buffering=1 << 20) as stream:
            return _Header(stream, file, size).read()
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as exc:
        raise WeightsError(f"{file}: unreadable GGUF header ({exc}); download it again") from exc
    except OSError as exc:
        raise WeightsError(f"{file}: cannot be read ({exc})") from exc


def read_containers(file: Path) -> list[GgufContainer]:
    """A file, or all parts of the split model it belongs to, the first one first."""
    first = read_container(file)
    count = int(first.metadata.get("split.count", 1))
    if count <= 1:
        return [first]
    stem = file.stem.rsplit("-", 3)[0]  # name-00001-of-00003
    parts = [file.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise WeightsError(f"{part}: missing; {file.name} is one of {count} parts of a model")
    return [first if part == file else read_container(part) for part in parts]


class _Header:
    """A cursor over the header."""

    def __init__(self, stream: BinaryIO, file: Path, size: int) -> None:
        self._stream, self._file, self._size = stream, file, size

    def read(self) -> GgufContainer:
        magic, version = self._bytes(4), self._number("<I")
        if magic != _MAGIC or version not in _VERSIONS:
            raise WeightsError(
                f"{self._file}: GGUF version {version} is not supported; "
                f"expected {' or '.join(map(str, _VERSIONS))}, little-endian"
            )
        num_tensors, num_values = self._number("<Q"), self._number("<Q")
        metadata = {}
        for _ in range(num_values):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        places = [self._tensor() for _ in range(num_tensors)]
        align = int(metadata.get("general.alignment", _ALIGNMENT))
        data = -(-self._stream.tell() // align) * align
        tensors = [
            GgufTensor(self._file, name, kind, shape, data + offset)
            for name, kind, shape, offset in sorted(places, key=lambda place: place[3])
        ]
        return GgufContainer(self._file, self._size, metadata, tensors)

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name = self._string()
        shape = [self._number("<Q") for _ in range(self._number("<I"))]
        return name, self._number("<I"), tuple(reversed(shape)), self._number("<Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalars(kind, 1)[0]
        kind, count = self._number("<I"), self._number("<Q")
        if kind in _SCALARS:
            return self._scalars(kind, count)
        return [self._value(kind) for _ in range(count)]

    def _scalars(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self._bytes(count * dtype.itemsize), dtype)
        if dtype == np.float32:  # 1e-06, not 9.999999974752427e-07
            return [float(str(value)) for value in values]
        return list(values.tolist())

    def _string(self) -> str:
        # Other tools write what tokens they have, whole characters or not.
        return self._bytes(self._number("<Q")).decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._bytes(struct.calcsize(form)))[0]
        return value

    def _bytes(self, count: int) -> bytes:
        # A damaged length must not make us allocate what the file cannot hold.
        found = self._stream.read(count) if count <= self._size else b""
        if len(found) != count:
            raise ValueError("it ends in the middle of a value")
        return found
