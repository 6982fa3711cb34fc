"""What idle connections cost a stream: tokens per second with 500 of them, against none.

    python tests/bench/idle_connections.py                   # 28 layers, hidden 64: host-bound
    python tests/bench/idle_connections.py --hidden 1024     # the 0.6B shape, 4-bit

One server process; both sides take turns in it, and a round's ratio is that of its two streams.
An idle connection has asked /health once and is kept open. Medians and spread, by the clock and in
the server's processor time for a token (on Linux), which a busy machine distorts less.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx

from mlx_qwen3.bench.subject import Shape, random_subject
from mlx_qwen3.demo import demo_folder
from mlx_qwen3.server.run import allow_connections
from tests.server.running import PATIENCE, Started, started


def main() -> None:
    """Measure, and print a line for each round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    allow_connections()
    shape = Shape("0.6b", 4, hidden=options.hidden, vocab=2048)
    with (
        random_subject(shape, demo_folder()) as subject,
        started("--model", f"random={subject.folder}") as server,
        server.client() as client,
    ):
        stream(server, client, options.tokens)  # what the first request makes is not measured
        rounds = list(measure(server, client, options))
    print(f"with {options.connections} idle connections, {len(rounds)} rounds:")
    for name, ratios in zip(("tokens/s", "processor time"), zip(*rounds, strict=True), strict=True):
        middle = statistics.median(ratios)
        print(f"  {middle:.3f} of the {name} ({min(ratios):.3f} to {max(ratios):.3f})")


Side = tuple[float, float]  # tokens per second, processor seconds per token


def measure(server: Started, client: httpx.Client, options: argparse.Namespace) -> Iterator[Side]:
    """Each round's ratios; the two sides take turns in going first."""
    for number in range(options.rounds):
        sides: dict[bool, Side] = {}
        for crowded in (True, False) if number % 2 else (False, True):
            with idle(server, options.connections if crowded else 0):
                sides[crowded] = stream(server, client, options.tokens)
        alone, company = sides[False], sides[True]
        print(f"{alone[0]:.1f} tokens/s alone, {company[0]:.1f} in company", flush=True)
        yield company[0] / alone[0], company[1] / alone[1]


@contextlib.contextmanager
def idle(server: Started, count: int) -> Iterator[None]:
    """So many connections that say nothing any more."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = http.client.HTTPConnection(
                "127.0.0.1", server.said["port"], timeout=PATIENCE
            )
            stack.callback(connection.close)
            connection.request("GET", "/health")
            connection.getresponse().read()
        yield


def stream(server: Started, client: httpx.Client, tokens: int) -> Side:
    """One stream, as its client sees it: from the first token to the end."""
    body = {
        "model": "random",
        "prompt": "once upon a time",
        "max_tokens": tokens,
        "temperature": 1.0,
        "seed": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, used, written = 0.0, 0.0, 0
    with client.stream("POST", "/v1/completions", json=body) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data: {"):
                continue
            if not began:
                began, used = time.perf_counter(), processor_seconds(server)
            usage = json.loads(line[6:]).get("usage")
            written = usage["completion_tokens"] if usage else written
    if written < tokens / 2:
        raise SystemExit(f"the random model stopped after {written} tokens; try another --hidden")
    seconds = time.perf_counter() - began
    return written / seconds, (processor_seconds(server) - used) / written


def processor_seconds(server: Started) -> float:
    """What the server's process used so far; where no /proc says it, the clock."""
    stat = Path(f"/proc/{server.said['pid']}/stat")
    if not stat.exists():
        return time.perf_counter()
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
