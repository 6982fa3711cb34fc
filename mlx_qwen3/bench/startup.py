"""Whole processes: a few tokens from a cold start, ours and mlx-lm's in turn."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlx_qwen3.bench.peer import PEER
from mlx_qwen3.bench.runner import OWN
from mlx_qwen3.errors import DeviceError

Progress = Callable[[int, int], None]


def commands(folder: Path, tokens: int) -> dict[str, list[str]]:
    """The two command lines that answer "hi" with `tokens` tokens."""
    python = [sys.executable, "-m"]
    options = ["--model", str(folder), "--max-tokens", str(tokens)]
    return {
        OWN: [*python, "mlx_qwen3.cli", "generate", "hi", *options],
        PEER: [*python, "mlx_lm", "generate", "--prompt", "hi", *options],
    }


def time_processes(
    sides: Mapping[str, Sequence[str]], rounds: int, progress: Progress
) -> dict[str, tuple[float, ...]]:
    """Seconds from start to end of each side's process, `rounds` times in turn.

    One more round comes first and is dropped: it fills the system's file cache, and compiles.
    Raises DeviceError when a process fails, with its last line.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    total = (rounds + 1) * len(sides)
    with tempfile.TemporaryDirectory(prefix="mlx-qwen3-bench-") as folder:
        environment = _as_installed(folder)
        for _ in range(rounds + 1):
            for name, command in sides.items():
                seconds[name].append(_seconds(name, command, environment))
                progress(sum(map(len, seconds.values())), total)
    return {name: tuple(values[1:]) for name, values in seconds.items()}


def _as_installed(folder: str) -> dict[str, str]:
    """Both sides find their modules compiled, and this one its own cache folder."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": folder, "MLX_QWEN3_CACHE": f"{folder}/cache"}


def _seconds(name: str, command: Sequence[str], environment: Mapping[str, str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(environment)
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DeviceError(f"{name} failed, exit code {done.returncode}: {last}")
    return seconds
