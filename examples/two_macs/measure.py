"""What a link between hosts does to a token: measured, and as the estimate has it.

    mlx.launch --hostfile hosts.json -- python examples/two_macs/measure.py MODEL

Measures the link with messages alone, a step without any message, and whole steps, in turns, and
prints how far the estimate of mlx_qwen3.bench.cluster is off. MODEL: a folder or a short name.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import mlx_qwen3.model  # noqa: F401 - before mlx

import mlx.core as mx  # isort: skip

from mlx_qwen3.bench.cluster import Link, Work
from mlx_qwen3.hub import resolve
from mlx_qwen3.model.parallel import load_part
from mlx_qwen3.model.peers import Peers

ROUNDS = 60
CHAIN = 8  # messages in a row, as in a step
SMALL, LARGE = 64, 1 << 17  # bytes of a message


class Mutable(Peers):
    """Peers that may be told to say nothing: then what a step computes is wrong, but as long."""

    muted = False

    def all_sum(self, x: mx.array) -> mx.array:
        return x if self.muted else super().all_sum(x)

    def all_gather(self, x: mx.array) -> mx.array:
        return mx.stack([x] * self.size) if self.muted else super().all_gather(x)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def typical(values: list[float]) -> float:
    """The lower decile: other programs only ever make a step slower."""
    return statistics.quantiles(values, n=10)[0]


def main(model_name: str) -> None:
    peers = Mutable.join()
    model = load_part(resolve(model_name), "tensor", peers)
    config = model.config
    messages = {size: mx.zeros(size, mx.uint8) for size in (SMALL, LARGE)}
    cache, token = model.make_cache(), mx.array([1])
    mx.eval(model.step(token, cache), list(messages.values()))

    def exchange(size: int) -> None:
        x = messages[size]
        for _ in range(CHAIN):
            x = peers.all_gather(x)[0]
        mx.eval(x)

    def step() -> None:
        mx.eval(peers.share(mx.argmax(model.step(token, cache), axis=-1)))

    figures: dict[str, list[float]] = {"small": [], "large": [], "silent": [], "step": []}
    rounds = CHAIN * (peers.size - 1)
    for _ in range(ROUNDS):
        figures["small"].append(seconds(lambda: exchange(SMALL)) / rounds)
        figures["large"].append(seconds(lambda: exchange(LARGE)) / rounds)
        peers.muted = True
        figures["silent"].append(seconds(step))
        peers.muted = False
        figures["step"].append(seconds(step))
        cache.trim(2)
    if peers.rank:
        return
    middle = {name: typical(values) for name, values in figures.items()}
    link = Link(middle["small"], LARGE / max(middle["large"] - middle["small"], 1e-9))
    floats = model.dtype.size
    work = Work(config.num_hidden_layers, config.hidden_size, config.vocab_size, 0, floats)
    expected = middle["silent"] + work.tensor_messages(peers.size, link)
    print(f"link: {link.latency * 1e6:.0f} us a round, {link.bandwidth / 1e9:.2f} GB/s")
    print(f"step without messages {middle['silent'] * 1e3:.2f} ms, with {middle['step'] * 1e3:.2f}")
    print(f"estimated {expected * 1e3:.2f} ms: {expected / middle['step'] - 1:+.0%}")


if __name__ == "__main__":
    main(sys.argv[1])
