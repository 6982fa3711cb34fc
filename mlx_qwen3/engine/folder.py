"""The folder of blocks on disk: found by name, written aside, the least used removed first.

Several processes may use it at once without knowing of each other: a block appears whole (a
rename) or not at all, one that is being read stays readable when another process removes it, and
what two remove is removed once. Nothing is locked and no index can be out of date. Blocks lie
in one subfolder per model. They hold what people said, so nobody but their owner may read them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlx_qwen3.storage import storage_folder

SUFFIX = ".safetensors"
_ASIDE = ".writing"
_ABANDONED = 3600  # seconds after which a file that is still being written never will be
_SHRINK_TO = 0.9  # of the limit, so that not every block that comes makes another one go
_RESERVE = 10**9  # bytes of the disk that are left to others
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


def default_folder() -> Path:
    """Where blocks lie unless somebody says otherwise; it need not exist."""
    return storage_folder("prefixes")


@dataclass(frozen=True)
class _Stored:
    """A file of the folder. used: when it was last read or written, seconds since 1970."""

    path: Path
    size: int
    used: float


class BlockFolder:
    """The blocks of all models.

    limit: bytes that all files together may take. Nothing is created before the first block is.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def path(self, model: str, name: str) -> Path:
        """Where a block of a model (a digest) lies, or would."""
        return self.folder / model / f"{name}{SUFFIX}"

    def present(self, model: str, names: Sequence[str]) -> int:
        """How many of the blocks, from the first on, are here."""
        for count, name in enumerate(names):
            if not self.path(model, name).is_file():
                return count
        return len(names)

    def write(self, model: str, name: str, size: int, fill: Callable[[IO[bytes]], None]) -> bool:
        """Have `fill` write a block of `size` bytes; False where there is no room for it.

        Raises OSError, and what `fill` raises; then nothing is left behind.
        """
        path = self.path(model, name)
        self._make_private(path.parent)
        if size > self.limit or size > shutil.disk_usage(path.parent).free - _RESERVE:
            return False
        aside = path.with_name(f"{name}.{secrets.token_hex(6)}{_ASIDE}")
        try:
            with open(aside, "xb", buffering=0, opener=_private) as stream:
                fill(stream)
            os.replace(aside, path)
        except BaseException:
            _remove(aside)
            raise
        return True

    def discard(self, model: str, name: str) -> None:
        """Remove a block that is no good."""
        _remove(self.path(model, name))

    def touch(self, model: str, names: Sequence[str]) -> None:
        """These blocks, a prefix from its beginning on, were of use.

        Later ones count as used a little earlier: without those before it a block is worthless.
        """
        now = time.time_ns()
        for place, name in enumerate(names):
            with contextlib.suppress(OSError):
                os.utime(self.path(model, name), ns=(now - place * 1000, now - place * 1000))

    def shrink(self) -> None:
        """Remove what was given up half written and, beyond the limit, what was least used."""
        stored = sorted(self._stored(), key=lambda file: file.used)
        size = sum(file.size for file in stored)
        wanted = self.limit * _SHRINK_TO if size > self.limit else size
        for file in stored:
            old = file.path.suffix == _ASIDE and file.used < time.time() - _ABANDONED
            if old or (size > wanted and file.path.suffix == SUFFIX):
                _remove(file.path)
                size -= file.size

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self._stored())

    def clear(self) -> int:
        """Remove every block of every model; returns how many bytes that were."""
        size = self.size
        for file in self._stored():
            _remove(file.path)
        for folder in self._models():
            with contextlib.suppress(OSError):  # somebody is writing into it
                folder.rmdir()
        return size

    def _stored(self) -> Iterator[_Stored]:
        for model in self._models():
            for path in _entries(model):
                if path.suffix in (SUFFIX, _ASIDE):
                    with contextlib.suppress(OSError):  # removed by another process just now
                        status = path.stat()
                        yield _Stored(path, status.st_size, status.st_mtime)

    def _models(self) -> list[Path]:
        return [path for path in _entries(self.folder) if path.is_dir()]

    def _make_private(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for one in (self.folder, folder):
            if one.stat().st_mode & 0o777 != _PRIVATE_FOLDER:
                one.chmod(_PRIVATE_FOLDER)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, _PRIVATE_FILE)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
