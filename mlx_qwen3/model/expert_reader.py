"""Reads pieces of files into memory that is there already, several at once.

Nothing is mapped: pages of a mapping would count as this process's memory, and the system keeps
what was read in its own cache anyway.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_qwen3.errors import WeightsError
from mlx_qwen3.model.expert_layout import Piece

Array = NDArray[np.generic]

# How numpy holds an array's bytes; it has no bfloat16.
RAW: dict[mx.Dtype, type[np.generic]] = {
    mx.bfloat16: np.uint16,
    mx.float16: np.float16,
    mx.float32: np.float32,
    mx.uint32: np.uint32,
    mx.uint8: np.uint8,
}
_STORED = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "U32": mx.uint32,
    "U8": mx.uint8,
}
# Handing work to another thread costs about as much as reading so many bytes from the page cache.
_LOT_BYTES = 512 << 10
# Readers beside the thread that waits for them: disks want several requests at a time.
_MOST_READERS = 7


@dataclass(frozen=True)
class Read:
    """A piece, and where it goes: one-dimensional, contiguous, as RAW has `dtype`."""

    piece: Piece
    into: Array
    dtype: mx.Dtype


class ExpertReader:
    """Holds the files open that it has read from: one that is replaced stays what it was.

    One caller at a time. After a read that failed nothing is still being written.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        weakref.finalize(self, _close, self._files)
        self._lock = threading.Lock()
        self._readers: ThreadPoolExecutor | None = None
        self._running: list[Future[None]] = []

    def read(self, reads: Sequence[Read]) -> None:
        """Fill all of them. Raises WeightsError when a file is cut short or cannot be read."""
        wait(self._running)  # of a read that was interrupted
        first, *others = lots(reads)
        self._running = [self._pool().submit(self._fill, lot) for lot in others]
        try:
            self._fill(first)
        finally:
            wait(self._running)
        for one in self._running:
            one.result()

    def _fill(self, reads: Sequence[Read]) -> None:
        try:
            for read in reads:
                fill(self._descriptor(read.piece.file), read)
        except OSError as exc:
            raise WeightsError(f"{read.piece.file}: cannot be read ({exc})") from exc

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._files:
                self._files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return self._files[file]

    def _pool(self) -> ThreadPoolExecutor:
        if self._readers is None:
            self._readers = ThreadPoolExecutor(_MOST_READERS, thread_name_prefix="mlx-qwen3-read")
        return self._readers


def lots(reads: Sequence[Read], most: int = _MOST_READERS + 1) -> list[list[Read]]:
    """Parts of about equal size, one for each thread: at least one, and none that is tiny."""
    total = sum(read.piece.nbytes for read in reads)
    share = max(total / most, _LOT_BYTES)
    parts: list[list[Read]] = [[]]
    size = 0
    for read in reads:
        if size >= share:
            parts.append([])
            size = 0
        parts[-1].append(read)
        size += read.piece.nbytes
    return parts


def fill(descriptor: int, read: Read) -> None:
    """Read a piece and convert it. Raises OSError, WeightsError when the file ends before it."""
    stored = _STORED[read.piece.dtype]
    if stored == read.dtype:
        _read_exactly(descriptor, read.piece, read.into)
        return
    raw = np.empty(read.into.size, RAW[stored])
    _read_exactly(descriptor, read.piece, raw)
    _FROM_FLOAT32[read.dtype](_TO_FLOAT32[stored](raw), read.into)


def _read_exactly(descriptor: int, piece: Piece, into: Any) -> None:
    rest, offset = memoryview(into).cast("B"), piece.offset
    while rest:
        count = os.preadv(descriptor, [rest], offset)
        if not count:
            raise WeightsError(
                f"{piece.file}: cut short at byte {offset}; it changed since the model was "
                "loaded: download it again"
            )
        rest, offset = rest[count:], offset + count


def _widened(raw: Array) -> Array:
    """bfloat16 is the upper half of float32."""
    return np.left_shift(raw, 16, dtype=np.uint32).view(np.float32)


def _rounded(values: Array, into: Array) -> None:
    """float32 to bfloat16: to nearest, ties to even, as MLX rounds; NaN stays one."""
    bits = values.view(np.uint32)
    nearest = (bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16
    into[:] = np.where(np.isnan(values.view(np.float32)), 0x7FC0, nearest)


def _copied(values: Array, into: Array) -> None:
    with np.errstate(over="ignore"):  # too large for float16 is infinite there, as in MLX
        into[:] = values


_TO_FLOAT32: dict[mx.Dtype, Callable[[Array], Array]] = {
    mx.bfloat16: _widened,
    mx.float16: lambda raw: raw.astype(np.float32),
    mx.float32: lambda raw: raw,
}
_FROM_FLOAT32: dict[mx.Dtype, Callable[[Array, Array], None]] = {
    mx.bfloat16: _rounded,
    mx.float16: _copied,
    mx.float32: _copied,
}


def _close(files: dict[Path, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
