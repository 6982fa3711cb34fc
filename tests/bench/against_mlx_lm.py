"""Prefill, decode and start-up against mlx-lm, each figure from a process of its own.

    python tests/bench/against_mlx_lm.py                 # 4-bit 0.6B shape, random weights
    python tests/bench/against_mlx_lm.py --start-up DIR  # whole processes, on a checkpoint folder

`mlx-qwen3 bench --vs mlx-lm` measures the same and more within one process; here neither side
sees what the other left behind. The two take turns, so that a machine that slows down slows both.
Medians, and the ratio of each pair. mlx-lm runs with its defaults.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlx_qwen3.bench.measure import prompt_ids
from mlx_qwen3.bench.peer import MlxLmRunner
from mlx_qwen3.bench.runner import OwnRunner, Runner
from mlx_qwen3.bench.startup import commands, time_processes
from mlx_qwen3.bench.stats import Spread
from mlx_qwen3.bench.subject import Shape, random_subject
from mlx_qwen3.model.config import ModelConfig

Rates = dict[str, float]
RUNNERS: dict[str, type[OwnRunner] | type[MlxLmRunner]] = {
    "mlx-qwen3": OwnRunner,
    "mlx-lm": MlxLmRunner,
}


def work(side: str, folder: str, prompt_tokens: int, tokens: int) -> Rates:
    """Tokens per second of one side, in this process."""
    runner: Runner = RUNNERS[side](Path(folder))
    runner.load()
    prompt = prompt_ids(prompt_tokens, ModelConfig.from_folder(folder).vocab_size)
    times = [time.perf_counter()]
    times += [time.perf_counter() for _ in runner.generate(prompt, tokens + 1)]
    return {
        "prefill": prompt_tokens / (times[1] - times[0]),
        "decode": tokens / (times[-1] - times[1]),
    }


def rates(side: str, folder: Path, prompt_tokens: int, tokens: int) -> Rates:
    """The same in a process of its own."""
    job = json.dumps([side, str(folder), prompt_tokens, tokens])
    done = subprocess.run(
        [sys.executable, __file__, "--work", job], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare_speed(release: str, runs: int, peer_prompt: int) -> None:
    """A peer that takes minutes for a prompt is given a shorter one; the rate is what counts."""
    sizes = {"mlx-qwen3": (256, 16), "mlx-lm": (peer_prompt, 4)}
    results: dict[str, list[Rates]] = {side: [] for side in sizes}
    with random_subject(Shape(release)) as subject:
        for _ in range(runs):
            for side, size in sizes.items():
                results[side].append(rates(side, subject.folder, *size))
    for figure in ("prefill", "decode"):
        ours, peer = ([one[figure] for one in found] for found in results.values())
        report(f"{release} shape, 4-bit, {figure} tokens/s", ours, peer)
    print(f"(prompt: {sizes['mlx-qwen3'][0]} tokens; mlx-lm's: {peer_prompt})")


def report(what: str, ours: Sequence[float], peer: Sequence[float]) -> None:
    """One line: medians, and the median and spread of the pairwise ratios."""
    ratio = Spread.of_ratios(ours, peer)
    print(
        f"{what}: {Spread.of(ours).median:.2f} against {Spread.of(peer).median:.2f}, "
        f"ratio {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}, {ratio.count} runs)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="0.6b", help="a release's name")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer-prompt", type=int, default=8, help="tokens of mlx-lm's prompt")
    parser.add_argument("--start-up", metavar="DIR", help="measure whole processes instead")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(*json.loads(arguments.work))))
    elif arguments.start_up:
        sides = commands(Path(arguments.start_up), tokens=8)
        seconds = time_processes(sides, arguments.runs, progress=lambda done, total: None)
        report("whole process, 8 tokens, seconds", *seconds.values())
    else:
        compare_speed(arguments.shape, arguments.runs, arguments.peer_prompt)


if __name__ == "__main__":
    main()
