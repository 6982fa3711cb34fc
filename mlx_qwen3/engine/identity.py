"""Which model a checkpoint folder holds, told without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from mlx_qwen3._version import __version__
from mlx_qwen3.model.checkpoint import Checkpoint, TensorInfo

SAMPLE_BYTES = 256  # from the middle of a tensor
MAX_SAMPLES = 1024  # tensors; expert by expert, a checkpoint has tens of thousands


def model_digest(folder: Path) -> str:
    """40 hex digits that differ for folders whose models compute different keys and values.

    Covers config.json, names, sizes and modification times of the weight files, their headers,
    and a few bytes of up to 1,024 tensors: archives and package managers set equal times, and
    fine-tunes of one model have equal headers. The versions of this package and of mlx are in
    it too, so that a corrected computation never meets what an incorrect one left.
    Raises WeightsError for an unreadable folder, OSError.
    """
    digest = hashlib.sha256()
    for part in _parts(folder):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:40]


def _parts(folder: Path) -> Iterator[bytes]:
    yield f"mlx-qwen3 {__version__}, mlx {version('mlx')}".encode()
    yield (folder / "config.json").read_bytes()
    tensors = Checkpoint.from_folder(folder).tensors
    for file in sorted({info.file for info in tensors.values()}):
        status = file.stat()
        yield f"{file.name} {status.st_size} {status.st_mtime_ns}".encode()
    for name in sorted(tensors):
        info = tensors[name]
        yield f"{name} {info.dtype} {info.shape} {info.file.name} {info.offset}".encode()
    yield from _samples(sorted(tensors.values(), key=lambda info: (info.file, info.offset)))


def _samples(tensors: list[TensorInfo]) -> Iterator[bytes]:
    """Some bytes of tensors spread over the checkpoint, in the order they lie in."""
    every = -(-len(tensors) // MAX_SAMPLES)
    for info in tensors[::every]:
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(info.offset + max(info.nbytes - SAMPLE_BYTES, 0) // 2)
            yield stream.read(min(SAMPLE_BYTES, info.nbytes))
