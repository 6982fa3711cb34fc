"""Output that is never half a model: written aside, journalled, renamed when complete.

    DIR.partial/                       while the work goes on
        model-00001-of-00002.safetensors    full size from the start, filled piece by piece
        journal.jsonl                       the plan's digest, then a line for each finished piece
    DIR/                               once everything is written and on the disk

A run that was killed is taken up where it stopped: a journalled piece whose checksum still holds
is kept, everything else is written again, with the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlx_qwen3.errors import Qwen3Error
from mlx_qwen3_convert.plan import Matrix, OutputTensor, Plan

SHARD_BYTES = 5 << 30  # as published checkpoints have them
_JOURNAL = "journal.jsonl"
_COPY_BYTES = 8 << 20


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    file: str
    offset: int
    nbytes: int


class Layout:
    """Every tensor's place, known before anything is written."""

    def __init__(self, plan: Plan, shard_bytes: int = SHARD_BYTES) -> None:
        shards = _shards(plan, shard_bytes)
        self.headers: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.places: dict[str, Place] = {}
        for number, tensors in enumerate(shards, 1):
            file = _file_name(number, len(shards))
            self.headers[file], offsets = _header(tensors)
            start = len(self.headers[file])
            for tensor in tensors:
                self.places[tensor.name] = Place(file, start + offsets[tensor.name], tensor.nbytes)
            self.sizes[file] = start + sum(tensor.nbytes for tensor in tensors)

    def index(self) -> dict[str, object]:
        """model.safetensors.index.json."""
        total = sum(place.nbytes for place in self.places.values())
        files = {name: place.file for name, place in sorted(self.places.items())}
        return {"metadata": {"total_size": total}, "weight_map": files}


def _shards(plan: Plan, shard_bytes: int) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for matrix in plan.matrices:
        for tensor in matrix.tensors():
            if shards[-1] and size + tensor.nbytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(tensor)
            size += tensor.nbytes
    return shards


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _header(tensors: list[OutputTensor]) -> tuple[bytes, dict[str, int]]:
    """A safetensors header, padded to 8 bytes, and each tensor's offset behind it."""
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    offsets: dict[str, int] = {}
    end = 0
    for tensor in tensors:
        offsets[tensor.name] = end
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Raise Qwen3Error for what the disk of an output refuses."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "the disk is full; make room and run the same command again, it goes on"
            raise Qwen3Error(f"{target}: {hint} where it stopped") from exc
        where = exc.filename or target
        raise Qwen3Error(f"{where}: cannot be used ({exc.strerror}); choose another --out") from exc


class PartialOutput:
    """The folder a conversion works in. One process at a time; use as a context manager.

    digest: identifies source and plan; a partial folder of another digest is started afresh.
    room: bytes that others will take on this disk meanwhile.
    Raises Qwen3Error when the disk is too small or another process works here.
    """

    def __init__(self, target: Path, layout: Layout, digest: str, *, room: int = 0) -> None:
        self.target = target
        self.folder = self.folder_of(target)
        self._layout = layout
        self._digest = digest
        self._room = room
        self._files: dict[str, int] = {}
        self._journal: IO[str] | None = None
        self._done: dict[str, int] = {}

    @staticmethod
    def folder_of(target: Path) -> Path:
        """Where the output of this name is built."""
        return target.with_name(target.name + ".partial")

    def __enter__(self) -> PartialOutput:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = self._lock()
        try:
            if not self._resume():
                self._start()
            self._open_files()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def has(self, matrix: Matrix, piece: int) -> bool:
        """Whether an earlier run finished this piece, and its bytes are still what it wrote."""
        wanted = self._done.get(_key(matrix, piece))
        return wanted is not None and wanted == self._checksum(matrix, piece)

    def write(self, matrix: Matrix, piece: int, blocks: Iterator[list[memoryview]]) -> None:
        """Write a piece and journal it."""
        places = list(self._piece_places(matrix, piece))
        written = [0] * len(places)
        sums = [0] * len(places)
        for block in blocks:
            for part, buffer in enumerate(block):
                place = places[part]
                self._write(self._files[place.file], buffer, place.offset + written[part])
                sums[part] = zlib.crc32(buffer, sums[part])
                written[part] += buffer.nbytes
        assert written == [place.nbytes for place in places]
        self._note({"piece": _key(matrix, piece), "crc": _fold(sums)})

    def finish(self, *, overwrite: bool) -> None:
        """Everything is written: put it on the disk and rename the folder to its target."""
        self._close()
        for path in self.folder.rglob("*"):
            _sync(path)
        _sync(self.folder)
        old = self.target.with_name(self.target.name + ".replaced")
        if overwrite and is_taken(self.target):
            _remove(old)
            self.target.rename(old)
        # Last, and at once: without its journal a partial folder is started afresh.
        (self.folder / _JOURNAL).unlink()
        self.folder.rename(self.target)
        _sync(self.target.parent)
        _remove(old)

    # --- the journal

    def _lock(self) -> IO[str]:
        journal = (self.folder / _JOURNAL).open("a+", encoding="utf-8")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            journal.close()
            raise Qwen3Error(
                f"{self.folder}: another conversion works here; wait for it or choose another --out"
            ) from exc
        return journal

    def _resume(self) -> bool:
        """Read what an earlier run of the same job finished."""
        assert self._journal is not None
        self._journal.seek(0)
        lines = list(_lines(self._journal))
        if not lines or lines[0] != {"digest": self._digest}:
            return False
        sizes = {file: self.folder / file for file in self._layout.sizes}
        for file, path in sizes.items():
            if not path.is_file() or path.stat().st_size != self._layout.sizes[file]:
                return False
        self._done = {
            str(line["piece"]): int(str(line["crc"])) for line in lines[1:] if "piece" in line
        }
        self._journal.write("\n")  # the last line may have been cut off
        return True

    def _start(self) -> None:
        assert self._journal is not None
        for path in self.folder.iterdir():
            if path.name != _JOURNAL:
                _remove(path)
        self._done = {}
        self._journal.truncate(0)
        self._require_space()
        for file, header in self._layout.headers.items():
            with (self.folder / file).open("wb") as stream:
                stream.write(header)
                stream.truncate(self._layout.sizes[file])
        self._note({"digest": self._digest})

    def _require_space(self) -> None:
        needed = sum(self._layout.sizes.values()) + self._room
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise Qwen3Error(
                f"{self.folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free on this "
                "disk; make room or choose another --out"
            )

    def _note(self, entry: dict[str, object]) -> None:
        assert self._journal is not None
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()

    # --- the bytes

    def _open_files(self) -> None:
        for file in self._layout.sizes:
            self._files[file] = os.open(self.folder / file, os.O_RDWR)

    def _write(self, file: int, buffer: memoryview, offset: int) -> None:
        while buffer.nbytes:
            count = os.pwrite(file, buffer, offset)
            buffer, offset = buffer[count:], offset + count

    def _piece_places(self, matrix: Matrix, piece: int) -> Iterator[Place]:
        for tensor in matrix.tensors():
            whole = self._layout.places[tensor.name]
            size = whole.nbytes // len(matrix.pieces)
            yield Place(whole.file, whole.offset + piece * size, size)

    def _checksum(self, matrix: Matrix, piece: int) -> int:
        sums = []
        for place in self._piece_places(matrix, piece):
            value, end = 0, place.offset + place.nbytes
            for start in range(place.offset, end, _COPY_BYTES):
                data = os.pread(self._files[place.file], min(_COPY_BYTES, end - start), start)
                value = zlib.crc32(data, value)
            sums.append(value)
        return _fold(sums)

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}
        if self._journal is not None:
            self._journal.close()
            self._journal = None


def _key(matrix: Matrix, piece: int) -> str:
    return f"{matrix.name}#{piece}"


def _fold(sums: list[int]) -> int:
    return zlib.crc32(struct.pack(f"<{len(sums)}I", *sums))


def _lines(journal: IO[str]) -> Iterator[dict[str, object]]:
    """The journal's entries; a line that was cut off by a kill is no entry."""
    for line in journal:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def is_taken(path: Path) -> bool:
    """Whether something is there, if only a link to nothing."""
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    """Delete a folder with all in it, a file or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
