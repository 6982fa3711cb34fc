"""Streamed experts: speed at a share of the experts in memory, and memory within a budget.

    python tests/bench/streamed_experts.py demo       # the demo model, against all in memory
    python tests/bench/streamed_experts.py shape      # random 30B-A3B, 4 bits (17 GB), in 6 GB
    python tests/bench/streamed_experts.py reads      # from the checkpoint, or from records
    python tests/bench/streamed_experts.py policies   # which expert should go

`demo` takes turns in one process; ratios are those of each round. `shape` runs `generate` in a
process of its own and watches its anonymous memory (Linux), which leaves the page cache out. It
reads and writes random tokens, and the random router has no structure: experts are found in memory
about as often as chance has it, which is the worst case. The page cache is warm where it has room
for the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlx_qwen3.bench.shapes import shape_config, write_checkpoint
from mlx_qwen3.bench.stats import Spread
from mlx_qwen3.bench.table import ratio_text, size_text
from mlx_qwen3.demo import demo_folder
from mlx_qwen3.generation.output import Completion
from mlx_qwen3.llm import LLM
from mlx_qwen3.model.residency import Residency
from mlx_qwen3.model.weights import load_model
from mlx_qwen3.releases import find
from tests.checkpoints import write_generation_config, write_tokenizer

QUESTIONS = ("What is 27 + 58?", "What is 4521 + 387?", "What is 901 - 455?", "Hello!")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 200, "speculation": "off"}


# --- the demo model


def demo_llm(slots: int) -> LLM:
    """With so many of its 16 experts in memory."""
    llm = LLM.from_folder(demo_folder("demo-moe"))
    llm.model = load_model(demo_folder("demo-moe"), residency=Residency(slots=slots))
    return llm


def tokens_per_second(llm: LLM) -> tuple[float, list[Completion]]:
    """Of all questions together, behind their first tokens."""
    done = [llm.generate(question, **GREEDY) for question in QUESTIONS]
    seconds = sum(one.timing.decode for one in done)
    return sum(len(one.token_ids) - 1 for one in done) / seconds, done


def demo(arguments: argparse.Namespace) -> None:
    """Decode speed by slots, as a ratio to the model as it is loaded by default."""
    resident = LLM.from_folder(demo_folder("demo-moe"))
    sides = {slots: demo_llm(slots) for slots in (4, 6, 8, 12, 16)}
    for llm in (resident, *sides.values()):
        tokens_per_second(llm)
    ratios: dict[int, list[float]] = {slots: [] for slots in sides}
    uses = {}
    for _ in range(arguments.rounds):
        for slots, llm in sides.items():
            base, expected = tokens_per_second(resident)
            rate, found = tokens_per_second(llm)
            if [one.token_ids for one in found] != [one.token_ids for one in expected]:
                raise SystemExit(f"{slots} slots: other tokens than with all experts in memory")
            ratios[slots].append(rate / base)
            uses[slots] = [one.experts for one in found if one.experts is not None]
    for slots, values in ratios.items():
        used = uses[slots]
        rate = statistics.mean(one.hit_rate for one in used) if used else 1.0
        read = statistics.mean(one.bytes_per_token for one in used) if used else 0.0
        print(
            f"{slots:2} of 16 experts in memory: {ratio_text(Spread.of(values))} of the tokens/s, "
            f"{rate:.0%} found there, {size_text(read)} read a token"
        )


# --- a release's shape


def shape(arguments: argparse.Namespace) -> None:
    """`generate` within a budget, watched from outside."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        config = shape_config(find(arguments.shape).release, layers=arguments.layers)
        write_checkpoint(config, 4, folder)
        write_tokenizer(folder)
        write_generation_config(folder)
        size = (folder / "model.safetensors").stat().st_size
        print(f"{arguments.shape} shape, 4 bits: {size_text(size)} on disk", flush=True)
        for prompt in arguments.prompts:
            run_shape(folder, prompt, arguments)


def run_shape(folder: Path, prompt: int, arguments: argparse.Namespace) -> None:
    options = ["--raw", "--json", "--no-prefix-cache", "--speculation", "off", "--seed", "1"]
    options += ["--temperature", "1", "--top-k", "0", "--top-p", "1"]
    options += ["--max-tokens", str(arguments.tokens), "--memory-budget", arguments.budget]
    text = "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=prompt))
    command = [sys.executable, "-m", "mlx_qwen3.cli", "generate", text]
    process = subprocess.Popen(
        [*command, "--model", str(folder), *options], stdout=subprocess.PIPE, text=True
    )
    watch = Watch(process.pid)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    done = json.loads(out)
    timing, experts = done["timing"], done.get("experts")
    print(
        f"budget {arguments.budget}, {done['prompt_tokens']} tokens read in "
        f"{timing['prefill']:.1f} s, {done['completion_tokens']} written at "
        f"{timing['tokens_per_second']:.2f} tokens/s; loaded in {timing['load']:.1f} s"
    )
    if experts is not None:
        print(
            f"  {experts['hit_rate']:.1%} of the experts found in memory, "
            f"{size_text(experts['bytes_per_token'])} read a token, "
            f"{size_text(experts['prompt_bytes'])} for the prompt"
        )
    print(
        f"  peak of anonymous memory {size_text(watch.peak)}; "
        f"of MLX {size_text(done['peak_memory_bytes'])}",
        flush=True,
    )


class Watch:
    """The most anonymous memory a process has had, looked at every 10 ms until it ends."""

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._status = Path(f"/proc/{pid}/status")
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while (now := self._now()) is not None:
            self.peak = max(self.peak, now)
            time.sleep(0.01)

    def _now(self) -> int | None:
        try:
            lines = self._status.read_text().splitlines()
        except OSError:
            return None
        sizes = [line.split()[1] for line in lines if line.startswith("RssAnon")]
        return int(sizes[0]) * 1024 if sizes else None


# --- where experts are read from


# An expert of the 30B-A3B in 4 bits, groups of 64: its matrices, their scales and biases.
PIECES = (786_432, 49_152, 49_152) * 3
RECORD = sum(PIECES)


@contextmanager
def filled_file(folder: str | None, experts: int) -> Iterator[int]:
    with tempfile.TemporaryFile(dir=folder) as stream:
        for _ in range(experts):
            stream.write(os.urandom(RECORD))
        stream.flush()
        os.fsync(stream.fileno())
        yield stream.fileno()


def read_stacked(descriptor: int, experts: int, expert: int, into: memoryview) -> None:
    """Piece by piece, each from a tensor of all experts, as checkpoints have them."""
    start = place = 0
    for size in PIECES:
        os.preadv(descriptor, [into[place : place + size]], start + expert * size)
        start, place = start + size * experts, place + size


def read_record(descriptor: int, experts: int, expert: int, into: memoryview) -> None:
    """All pieces at once, as a file made for it would have them."""
    parts, place = [], 0
    for size in PIECES:
        parts.append(into[place : place + size])
        place += size
    os.preadv(descriptor, parts, expert * RECORD)


Reader = Callable[[int, int, int, memoryview], None]
LAYOUTS: dict[str, Reader] = {"checkpoint": read_stacked, "records": read_record}


def bytes_per_second(
    descriptor: int, experts: int, read: Reader, threads: int, order: Sequence[int]
) -> float:
    def work(lot: Sequence[int]) -> None:
        into = memoryview(bytearray(RECORD))
        for expert in lot:
            read(descriptor, experts, expert, into)

    workers = [threading.Thread(target=work, args=(order[i::threads],)) for i in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(order) * RECORD / (time.perf_counter() - start)


def reads(arguments: argparse.Namespace) -> None:
    """Both layouts in turn, with the page cache emptied of the file (Linux) and full of it."""
    experts, few = 400, 60
    with filled_file(arguments.folder, experts) as descriptor:
        for cached in (False, True):
            for threads in (1, 8):
                rates: dict[str, list[float]] = {name: [] for name in LAYOUTS}
                for number in range(2 * arguments.rounds):
                    for name in sorted(LAYOUTS, reverse=bool(number % 2)):
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                        if cached:
                            bytes_per_second(descriptor, experts, read_record, 1, range(experts))
                        order = random.sample(range(experts), few)
                        rates[name].append(
                            bytes_per_second(descriptor, experts, LAYOUTS[name], threads, order)
                        )
                ratio = Spread.of_ratios(*(tuple(rates[name]) for name in LAYOUTS))
                speed = statistics.median(rates["checkpoint"]) / 1e9
                where = "in the page cache" if cached else "not cached"
                print(
                    f"{where}, {threads} threads: {speed:.2f} GB/s from the checkpoint, "
                    f"{ratio_text(ratio)} of that from records of experts",
                    flush=True,
                )


# --- which expert goes


def routes() -> list[tuple[int, list[int]]]:
    """(layer, experts) of every step of the demo model's replies."""
    llm = LLM.from_folder(demo_folder("demo-moe"))
    llm.model = load_model(demo_folder("demo-moe"), residency=Residency(slots=15))
    taken: list[tuple[int, list[int]]] = []
    for index, layer in enumerate(llm.model.layers):
        pool: Any = layer.mlp.experts._pool
        pool.fetch = _noted(pool.fetch, index, taken)
    for question in (*QUESTIONS, "Copy this list: apple, stone, river, cloud"):
        llm.generate(question, **GREEDY)
    return [one for one in taken if len(one[1]) == 4]  # of single tokens


def _noted(
    fetch: Callable[[Sequence[int]], list[int]], layer: int, taken: list[tuple[int, list[int]]]
) -> Callable[[Sequence[int]], list[int]]:
    def noted(experts: Sequence[int]) -> list[int]:
        taken.append((layer, list(experts)))
        return fetch(experts)

    return noted


def hit_rate(steps: Sequence[tuple[Any, list[Any]]], slots: int, decay: float | None) -> float:
    """decay: of the count of an expert's uses at each step of its layer; None: recency alone."""
    held: dict[Any, OrderedDict[Any, float]] = {}
    hits = 0
    for layer, experts in steps:
        here = held.setdefault(layer, OrderedDict())
        hits += sum(expert in here for expert in experts)
        for expert in here:
            here[expert] *= 0 if decay is None else decay
        for expert in experts:
            here[expert] = here.get(expert, 0.0) + 1
            here.move_to_end(expert)
        while len(here) > slots:
            idle = [expert for expert in here if expert not in experts]
            del here[min(idle, key=lambda expert: here[expert])]
    return hits / sum(len(experts) for _, experts in steps)


def policies(arguments: argparse.Namespace) -> None:
    """Shares of lookups served from memory, replayed on the demo model's routes."""
    steps = routes()
    layers = len({layer for layer, _ in steps})
    together = [(0, [(layer, expert) for expert in experts]) for layer, experts in steps]
    for slots in (6, 8, 10, 12):
        print(
            f"{slots:2} of 16 experts in memory: recency {hit_rate(steps, slots, None):.1%}, "
            f"counts {hit_rate(steps, slots, 1.0):.1%}, "
            f"fading counts {hit_rate(steps, slots, 0.9):.1%}, "
            f"recency over all layers {hit_rate(together, slots * layers, None):.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (demo, shape, reads, policies):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--folder", help="where files are written; default: TMPDIR")
    options = commands.choices["shape"].add_argument
    options("--shape", default="30b-a3b", help="a release's name")
    options("--layers", type=int, help="fewer layers than the release has")
    options("--budget", default="6GB")
    options("--prompts", type=int, nargs="+", default=[32], help="tokens read, one run each")
    options("--tokens", type=int, default=32, help="tokens written")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
