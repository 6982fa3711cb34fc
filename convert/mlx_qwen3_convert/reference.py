"""A reference's predictions on disk: it is run once, and not in memory beside what it judges.

One file per (weights of the reference, tokens, dtype), in the user's cache folder. A file is
complete or not there: it is written aside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx

from mlx_qwen3.errors import Qwen3Error
from mlx_qwen3_convert.calibration import Window
from mlx_qwen3_convert.divergence import Prediction, log_probabilities, predict
from mlx_qwen3_convert.stream import LayerStream, Progress, silent

KEEP = 256  # tokens of a large vocabulary
_VERSION = 1  # of what is in a file
_CACHE_BYTES = 2 << 30  # older files are deleted beyond this


class Reference:
    """Predictions of a checkpoint for the windows of a text."""

    def __init__(self, file: Path, windows: Sequence[Window]) -> None:
        self._file = file
        self.windows = windows

    def __iter__(self) -> Iterator[Prediction]:
        """In the order of the windows, read from disk as they are evaluated."""
        stored = mx.load(str(self._file))
        assert isinstance(stored, dict)
        for index in range(len(self.windows)):
            yield Prediction(stored.pop(f"{index}.logprobs"), stored.pop(f"{index}.ids", None))


def open_reference(
    folder: Path,
    windows: Sequence[Window],
    *,
    keep: int = KEEP,
    dtype: str | None = None,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Reference:
    """The predictions of a checkpoint, from the cache or by running it.

    cache: the folder to keep them in; None: the user's. Raises as LayerStream, and Qwen3Error
    when the cache cannot be written.
    """
    cache = default_cache() if cache is None else cache
    file = cache / f"{_key(folder, windows, keep, dtype)}.safetensors"
    if file.is_file():
        os.utime(file)  # used: deleted last
        return Reference(file, windows)
    tensors = _predictions(folder, windows, keep, dtype, progress)
    try:
        _write(file, tensors)
        _prune(cache, keep=file)
    except (OSError, RuntimeError) as exc:  # RuntimeError: MLX's, for a full disk
        raise Qwen3Error(
            f"{cache}: cannot be written ({exc}); make room, or set XDG_CACHE_HOME to another place"
        ) from exc
    return Reference(file, windows)


def default_cache() -> Path:
    """Where predictions are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "mlx-qwen3" / "references"


def _predictions(
    folder: Path, windows: Sequence[Window], keep: int, dtype: str | None, progress: Progress
) -> dict[str, mx.array]:
    states, head = LayerStream(folder, dtype=dtype).run(windows, progress)
    tensors: dict[str, mx.array] = {}
    for index, x in enumerate(states):
        kept = predict(log_probabilities(head(x[0, :-1])), keep)
        tensors[f"{index}.logprobs"] = kept.logprobs
        if kept.ids is not None:
            tensors[f"{index}.ids"] = kept.ids
        mx.eval(list(tensors.values())[-2:])
    return tensors


def _key(folder: Path, windows: Sequence[Window], keep: int, dtype: str | None) -> str:
    """Changes with anything the predictions depend on."""
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    stats = [file.stat() for file in files if file.is_file()]
    facts = {
        "version": _VERSION,
        "folder": str(folder.resolve()),
        "files": [(stat.st_size, stat.st_mtime_ns) for stat in stats],
        "windows": windows,
        "keep": keep,
        "dtype": dtype,
        "device": str(mx.default_device()),
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _write(file: Path, tensors: dict[str, mx.array]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.stem}.{os.getpid()}.partial.safetensors")
    try:
        mx.save_safetensors(str(aside), tensors)
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _prune(cache: Path, *, keep: Path) -> None:
    """Delete what was used longest ago until the rest is small enough."""
    others = [file for file in cache.glob("*.safetensors") if file != keep]
    others.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    room = _CACHE_BYTES - keep.stat().st_size
    for file in others:
        room -= file.stat().st_size
        if room < 0:
            file.unlink(missing_ok=True)
