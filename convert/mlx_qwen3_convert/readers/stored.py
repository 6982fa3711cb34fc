"""Numbers in files, read by the row: what every format is built on.

A `Stored` is a place in a file seen as a matrix; nothing is read until rows are asked for, and
then only their bytes. One expert of a stack is a `Stored` too: the same file, further on.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwen3.errors import WeightsError
from mlx_qwen3.model.checkpoint import Checkpoint, TensorInfo
from mlx_qwen3_convert.readers.base import FloatType

Array = NDArray[Any]

# safetensors' names of number types, as numpy knows them. BF16 and F8 stay bare bits.
_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "I64": "<i8",
    "I32": "<u4",  # only ever packed bits here, which shift better unsigned
    "U32": "<u4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "u1",
}
FLOATS: dict[str, FloatType] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_CHUNK = 1 << 20  # bytes read at once, and copied while the cache still has them
# The bits of an exponent: all set in infinities and NaN, and in nothing else.
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}


class Files:
    """Open files, each opened when first read. Threads may share it."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = Lock()

    def read_into(self, file: Path, offset: int, into: memoryview) -> bool:
        """Fill a buffer from a place in a file; whether the file had that much."""
        handle = self._handle(file)
        while into:
            found = os.pread(handle, min(len(into), _CHUNK), offset)
            if not found:
                return False
            into[: len(found)] = found
            into, offset = into[len(found) :], offset + len(found)
        return True

    def tensors(self, folder: Path) -> dict[str, TensorInfo]:
        """The tensors of a safetensors folder. Raises WeightsError naming the file at fault."""
        return Checkpoint.from_folder(folder).tensors

    def all_zero(self, stored: Stored) -> bool:
        """Whether a tensor holds nothing but zeros."""
        return not stored.read().any()

    def _handle(self, file: Path) -> int:
        with self._lock:
            if file not in self._open:
                self._open[file] = os.open(file, os.O_RDONLY)
            return self._open[file]

    def close(self) -> None:
        """Let go of them; a later read opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, seen as rows: all dimensions but the last are rows.

    A vector has as many rows as numbers. offset: bytes from the file's start to the first row.
    """

    files: Files
    name: str
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows, or numbers of a vector."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        """Bytes in a row."""
        return self.width * np.dtype(_NUMPY[self.dtype]).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.num_rows * self.row_bytes

    def part(self, first: int, rows: int) -> Stored:
        """Some of the rows as a matrix of their own."""
        offset = self.offset + first * self.row_bytes
        return replace(self, offset=offset, shape=(rows, self.width))

    def reshaped(self, *shape: int) -> Stored:
        """The same numbers in another shape."""
        return replace(self, shape=shape)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows start..stop: (rows, width), or (rows,) of a vector; bfloat16 as its bits.

        Raises WeightsError when the file ends before they do, or cannot be read.
        """
        stop = self.num_rows if stop is None else stop
        values = np.empty((stop - start, self.width), _NUMPY[self.dtype])
        self._fill(values, self.offset + start * self.row_bytes)
        return values if len(self.shape) > 1 else values.reshape(-1)

    def read_columns(self, start: int, stop: int) -> Array:
        """Columns start..stop of every row, reading only those: (num_rows, stop - start)."""
        if (start, stop) == (0, self.width):
            return self.read()
        values = np.empty((self.num_rows, stop - start), _NUMPY[self.dtype])
        first = self.offset + start * values.itemsize
        for row in range(self.num_rows):
            self._fill(values[row], first + row * self.row_bytes)
        return values

    def floats(self, start: int = 0, stop: int | None = None) -> mx.array:
        """Rows of a tensor of floats, in its own type. Raises WeightsError on NaN and infinity."""
        bits = self.read(start, stop)
        self._require_finite(bits)
        values = mx.array(bits)
        return values.view(mx.bfloat16) if self.dtype == "BF16" else values

    def float32(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows of a tensor of floats as numpy's float32. Raises WeightsError as `floats` does."""
        return self.as_float32(self.read(start, stop))

    def as_float32(self, bits: Array) -> NDArray[np.float32]:
        """What `read` or `read_columns` gave, as float32. Raises WeightsError as `floats` does."""
        self._require_finite(bits)
        if self.dtype == "BF16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        return bits.astype(np.float32, copy=False)

    def _fill(self, values: Array, offset: int) -> None:
        if not values.size:
            return
        try:
            whole = self.files.read_into(self.file, offset, values.data.cast("B"))
        except OSError as exc:
            raise WeightsError(f"{self.file}: tensor {self.name} cannot be read ({exc})") from exc
        if not whole:
            raise WeightsError(f"{self.file}: cut short in tensor {self.name}; download it again")

    def _require_finite(self, values: Array) -> None:
        exponent = _EXPONENT.get(self.dtype)
        if exponent is None:
            raise WeightsError(
                f"{self.file}: tensor {self.name} holds {self.dtype} numbers; "
                f"expected {', '.join(FLOATS)}"
            )
        bits = values.view(f"<u{values.itemsize}") & exponent
        if (bits == exponent).any():
            raise not_finite(self.name, self.file)


def not_finite(name: str, file: Path) -> WeightsError:
    """What is raised for a tensor with NaN or infinity in it."""
    return WeightsError(f"{file}: tensor {name} holds NaN or infinity; the checkpoint is damaged")


def stored_tensors(folder: Path, files: Files) -> dict[str, Stored]:
    """The tensors of a safetensors folder by published name, in the order of the bytes on disk.

    Raises WeightsError naming the file that is missing, damaged or cut short.
    """
    infos = files.tensors(folder)
    # Embedding checkpoints are saved without the outer module, hence without its name.
    prefix = "model." if "embed_tokens.weight" in infos else ""
    # A file at a time, and the names let go of: of 235B there are 150 thousand.
    files_in_order = {info.file: number for number, info in enumerate(infos.values())}
    order = sorted(infos, key=lambda name: (files_in_order[infos[name].file], infos[name].offset))
    return {f"{prefix}{name}": _stored(name, infos.pop(name), files) for name in order}


def _stored(name: str, info: TensorInfo, files: Files) -> Stored:
    if info.dtype not in _NUMPY:
        raise WeightsError(f"{info.file}: tensor {name} holds {info.dtype} numbers, not known here")
    stored = Stored(files, name, info.file, info.offset, info.dtype, info.shape)
    if stored.nbytes != info.nbytes:
        raise WeightsError(
            f"{info.file}: tensor {name} of shape {info.shape} has {info.nbytes} bytes; "
            f"expected {stored.nbytes}: the file is damaged, download it again"
        )
    return stored
