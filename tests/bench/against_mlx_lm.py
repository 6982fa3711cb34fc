"""Prefill, decode and start-up against mlx-lm, in turn on the same machine, as ratios.

    python tests/bench/against_mlx_lm.py                 # 4-bit 0.6B shape, random weights
    python tests/bench/against_mlx_lm.py --start-up DIR  # whole processes, on a checkpoint folder

Each figure comes from a process of its own; the two sides take turns, so that a machine that
slows down slows both. Medians, and the ratio of each pair. mlx-lm runs with its defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlx_qwen3.releases import find
from tests.bench.random_checkpoint import write

Rates = dict[str, float]
SIDES = ("mlx-qwen3", "mlx-lm")


def measure_ours(folder: str, prompt: list[int], tokens: int) -> Iterator[float]:
    """Yields the time after the prompt, then after each token (seconds, perf_counter)."""
    from mlx_qwen3.generation.loop import TokenLoop
    from mlx_qwen3.generation.sampling import Sampler, SamplingParams
    from mlx_qwen3.model.weights import load_model

    model = load_model(folder)
    sampler = Sampler(SamplingParams(temperature=0.0), model.config.vocab_size, seed=0)
    loop = TokenLoop(model, model.make_cache(), sampler)
    yield time.perf_counter()
    loop.feed(prompt)
    for _ in range(tokens + 1):
        loop.next()
        yield time.perf_counter()


def measure_mlx_lm(folder: str, prompt: list[int], tokens: int) -> Iterator[float]:
    """As measure_ours."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    yield time.perf_counter()
    steps = generate_step(mx.array(prompt), model, max_tokens=tokens + 2)
    for _ in range(tokens + 1):
        next(steps)
        yield time.perf_counter()


MEASURE: dict[str, Callable[[str, list[int], int], Iterator[float]]] = {
    "mlx-qwen3": measure_ours,
    "mlx-lm": measure_mlx_lm,
}


def work(side: str, folder: str, prompt_tokens: int, tokens: int) -> Rates:
    """Tokens per second of one side, in this process."""
    times = list(MEASURE[side](folder, list(range(1000, 1000 + prompt_tokens)), tokens))
    return {
        "prefill": prompt_tokens / (times[1] - times[0]),
        "decode": tokens / (times[-1] - times[1]),
    }


def rates(side: str, folder: str, prompt_tokens: int, tokens: int) -> Rates:
    """The same in a process of its own."""
    job = json.dumps([side, folder, prompt_tokens, tokens])
    done = subprocess.run(
        [sys.executable, __file__, "--work", job], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare_speed(release: str, runs: int, peer_prompt: int) -> None:
    """A peer that takes minutes for a prompt is given a shorter one; the rate is what counts."""
    with tempfile.TemporaryDirectory() as folder:
        write(find(release).release, 4, Path(folder))
        sizes = {"mlx-qwen3": (256, 16), "mlx-lm": (peer_prompt, 4)}
        results: dict[str, list[Rates]] = {side: [] for side in SIDES}
        for _ in range(runs):
            for side in SIDES:
                results[side].append(rates(side, folder, *sizes[side]))
    for figure in ("prefill", "decode"):
        ours, peer = ([one[figure] for one in results[side]] for side in SIDES)
        report(f"{release} shape, 4-bit, {figure} tokens/s", ours, peer)
    print(f"(prompt: {sizes['mlx-qwen3'][0]} tokens; mlx-lm's: {peer_prompt})")


def compare_start_up(folder: str, runs: int) -> None:
    """Whole processes: eight tokens from a cold start, in seconds.

    Both sides find their modules compiled, as installed packages have them, wherever they lie.
    """
    scripts = Path(sys.executable).parent
    options = ["--model", folder, "--max-tokens", "8"]
    commands = {
        "mlx-qwen3": [scripts / "mlx-qwen3", "generate", "hi", *options],
        "mlx-lm": [scripts / "mlx_lm.generate", "--prompt", "hi", *options],
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as compiled:
        environment |= {"PYTHONPYCACHEPREFIX": compiled, "MLX_QWEN3_CACHE": f"{compiled}/cache"}
        for run in range(runs + 1):
            for side in SIDES:
                start = time.perf_counter()
                subprocess.run(commands[side], capture_output=True, check=True, env=environment)
                if run:  # the first fills the file cache, and compiles
                    seconds[side].append(time.perf_counter() - start)
    report("whole process, 8 tokens, seconds", *(seconds[side] for side in SIDES))


def report(what: str, ours: list[float], peer: list[float]) -> None:
    """One line: medians, and the median and spread of the pairwise ratios."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    print(
        f"{what}: {statistics.median(ours):.2f} against {statistics.median(peer):.2f}, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, "
        f"{len(ratios)} runs)",
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
        compare_start_up(arguments.start_up, arguments.runs)
    else:
        compare_speed(arguments.shape, arguments.runs, arguments.peer_prompt)


if __name__ == "__main__":
    main()
