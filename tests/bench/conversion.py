"""Time and peak memory of a conversion against mlx_lm.convert, whole processes in turn.

python tests/bench/conversion.py                          # the 1.7B shape, 3.4 GB on disk
python tests/bench/conversion.py 30b-a3b --layers 12 --alone     # 16 GB, without mlx-lm
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.checkpoints import write_tokenizer


@dataclass(frozen=True)
class Run:
    """A finished process: wall time in seconds, largest resident set in bytes."""

    seconds: float
    peak: int


def run(command: list[str], out: Path) -> Run:
    """Run a conversion into `out`, then remove what it wrote."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    shutil.rmtree(out)
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_maxrss * unit)


def make(release: str, layers: int | None, folder: Path) -> None:
    """Write the source in a process of its own: Linux counts a parent's peak for its children."""
    script = Path(__file__).with_name("random_checkpoint.py")
    command = [sys.executable, str(script), release, "--bits", "16", "--out", str(folder)]
    subprocess.run([*command, *(["--layers", str(layers)] if layers else [])], check=True)
    write_tokenizer(folder)


def report(side: str, runs: list[Run]) -> None:
    """One line of medians."""
    seconds = statistics.median(one.seconds for one in runs)
    peak = max(one.peak for one in runs)
    print(f"{side}: {seconds:.1f} s, peak resident {peak / 1e6:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", nargs="?", default="1.7b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="leave mlx-lm out")
    parser.add_argument("--folder", type=Path, help="where the disk has room")
    arguments = parser.parse_args()
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        source, out = Path(root) / "source", Path(root) / "out"
        make(arguments.release, arguments.layers, source)
        ours = [f"{scripts}/mlx-qwen3", "convert", str(source), "--out", str(out)]
        peer = [f"{scripts}/mlx_lm.convert", "-q", "--hf-path", str(source)]
        pairs: list[tuple[Run, Run | None]] = []
        run(ours, out)  # the first fills the system's file cache
        for _ in range(arguments.runs):
            mine = run(ours, out)
            pairs.append(
                (mine, None if arguments.alone else run([*peer, "--mlx-path", str(out)], out))
            )
    report("mlx-qwen3", [mine for mine, _ in pairs])
    theirs = [(mine, other) for mine, other in pairs if other is not None]
    if theirs:
        report("mlx-lm", [other for _, other in theirs])
        ratio = statistics.median(mine.seconds / other.seconds for mine, other in theirs)
        print(f"wall time ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
