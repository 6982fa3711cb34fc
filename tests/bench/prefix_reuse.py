"""Time to the first token of a conversation's second turn, against that of its first.

    python tests/bench/prefix_reuse.py                       # 4-bit 0.6B shape, 8,192 tokens
    python tests/bench/prefix_reuse.py --layers 4 --history 4096

Turn one reads the history. Turn two adds a question, in the same process (its cache lies in
memory) and in a new one (blocks on disk); the model's loading is left out. Each run starts from an
empty store. Ratios of whole first-token times, from call to first token, by the clock and in
processor time (which a busy machine distorts less); medians and spread.
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlx_qwen3.bench.shapes import shape_config, write_checkpoint
from mlx_qwen3.releases import find
from tests.checkpoints import write_generation_config, write_tokenizer

OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "thinking": False}
TURN_TWO = "And in one word? " * 3


def first_token(llm: Any, messages: list[dict[str, str]]) -> dict[str, Any]:
    """One token for these messages: how long it took (seconds), and which it was."""
    clock, processor = time.perf_counter(), time.process_time()
    completion = llm.generate(messages, **OPTIONS)
    return {
        "clock": time.perf_counter() - clock,
        "processor": time.process_time() - processor,
        "cached": completion.usage.cached_tokens,
        "ids": list(completion.token_ids),
    }


def work(folder: str, history: int, turns: list[int]) -> list[dict[str, Any]]:
    """Take these turns (1, 2) in this process."""
    from mlx_qwen3 import load

    llm = load(folder)
    llm.generate("warm up", temperature=0.0, max_tokens=2)
    text = ("It was a bright cold day in April, and the clocks were striking thirteen. ") * history
    one = [{"role": "user", "content": text[:history]}]
    two = [*one, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": TURN_TWO}]
    results = [first_token(llm, one if turn == 1 else two) for turn in turns]
    llm.prefix_store.flush()  # type: ignore[union-attr]
    return results


def process(folder: str, history: int, turns: list[int], store: str) -> list[dict[str, Any]]:
    """The same in a process of its own, with its disk blocks in `store`."""
    job = json.dumps([folder, history, turns])
    command = [sys.executable, __file__, "--work", job]
    environment = {**os.environ, "MLX_QWEN3_CACHE": store}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


def run(folder: str, history: int) -> dict[str, float]:
    """One run: both turns here, turn two again in a process that has only the disk."""
    with tempfile.TemporaryDirectory() as store:
        one, two = process(folder, history, [1, 2], store)
        (again,) = process(folder, history, [2], store)
    if not one["cached"] < two["cached"] or not one["cached"] < again["cached"]:
        raise SystemExit(f"nothing was reused: {one['cached']}, {two['cached']}, {again['cached']}")
    if two["ids"] != again["ids"]:
        raise SystemExit("the two second turns differ in their tokens")
    return {
        f"{name}, {by}": turn[by] / (1 if turn is one else one[by])
        for name, turn in (("first", one), ("same process", two), ("new process", again))
        for by in ("clock", "processor")
    }


def report(runs: list[dict[str, float]], history: int) -> None:
    """A line for the first turn, and one for each ratio."""
    first = statistics.median(one["first, clock"] for one in runs)
    print(f"first turn, {history} tokens of history: {first:.2f} s to the first token")
    for name in runs[0]:
        ratios = [one[name] for one in runs]
        if not name.startswith("first"):
            print(
                f"second turn, {name}: {statistics.median(ratios):.1%} of it "
                f"({min(ratios):.1%} to {max(ratios):.1%}, {len(ratios)} runs)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="0.6b", help="a release's name")
    parser.add_argument("--layers", type=int, help="fewer layers than the release has")
    parser.add_argument("--history", type=int, default=8192, help="tokens of the first prompt")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(work(*json.loads(arguments.work))))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = shape_config(find(arguments.shape).release, layers=arguments.layers)
        write_checkpoint(config, 4, Path(folder))
        write_tokenizer(Path(folder))
        write_generation_config(Path(folder))
        runs = [run(folder, arguments.history) for _ in range(arguments.runs)]
    report(runs, arguments.history)


if __name__ == "__main__":
    main()
