"""Concurrent streams: all tokens per second, and the longest pause, against mlx-lm's server.

    python tests/bench/server_streams.py                      # the bundled demo model
    python tests/bench/server_streams.py --dtype bfloat16     # as it is published
    python tests/bench/server_streams.py --shape 0.6b --tokens 8 --longest 40 --rounds 2

Each server is a process of its own, started once with its defaults; rounds take turns, ours first.
Eight clients ask greedily, --stagger seconds apart (0: all at once), with prompts of mixed lengths
that no round has in common with another, and read the same number of tokens each: the checkpoint
is a copy in which nothing ends a text. The first round of each side is dropped: it compiles.
mlx-lm computes in the checkpoint's own type, and 16-bit products are very slow on a CPU, so scales
and norms are float32 in the copy unless --dtype says otherwise; no value is changed by that.

A pause is the time between two pieces of text of one stream; a silence is that, or the time until
its first piece. Figures are of whole rounds: tokens
of all streams over the time from the first question to the last end, and the longest pause of any.
Ratios are those of neighbouring rounds; medians, smallest and largest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mlx_qwen3.bench.peer import PEER
from mlx_qwen3.bench.runner import OWN
from mlx_qwen3.bench.shapes import shape_config, write_checkpoint
from mlx_qwen3.bench.stats import Spread
from mlx_qwen3.demo import demo_folder
from mlx_qwen3.releases import find
from tests.checkpoints import write_generation_config, write_tokenizer

NEVER = "<|object_ref_start|>"  # a token that models without pictures do not say
MIX = (0.02, 0.4, 0.06, 1.0, 0.03, 0.7, 0.12, 0.25)  # of the longest prompt
WORDS = ("the", "of", "and", "a", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on")
PATIENCE = 900.0  # seconds; a server that is silent for so long will not speak any more


@dataclass(frozen=True)
class Address:
    """Where a server listens, what it calls the model, and its key."""

    port: int
    model: str
    key: str = ""


@dataclass(frozen=True)
class Stream:
    """One reply. Seconds; waited: until its first piece. pauses: between its pieces."""

    tokens: int
    waited: float
    pauses: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class Round:
    """All streams together. pause, silence: the longest of any. median: of all pauses."""

    tokens: int
    rate: float
    pause: float
    median: float
    silence: float
    texts: tuple[str, ...]


# --- checkpoints


def endless_demo(folder: Path) -> None:
    """The demo model, ended by a token that it does not say."""
    shutil.copytree(demo_folder("demo"), folder, dirs_exist_ok=True)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    never = next(one["id"] for one in tokenizer["added_tokens"] if one["content"] == NEVER)
    for name, change in (
        ("config.json", {"eos_token_id": never}),
        ("generation_config.json", {"eos_token_id": never}),
        ("tokenizer_config.json", {"eos_token": NEVER}),
    ):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | change))


def random_shape(folder: Path, release: str) -> None:
    """Random 4-bit weights, and a tokenizer in which every token is a text."""
    config = shape_config(find(release).release)
    write_checkpoint(config, 4, folder)
    write_tokenizer(folder)
    write_generation_config(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    # Added tokens keep their ids only where the vocabulary has them, too.
    added = {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    known = 1 + max(added.values())
    more = {f"Ġ{number}": number for number in range(known, config["vocab_size"])}
    tokenizer["model"]["vocab"] |= added | more
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))


def widen(folder: Path) -> None:
    """Scales, biases and norms in float32."""
    import mlx.core as mx

    file = str(folder / "model.safetensors")
    tensors: Any = mx.load(file)
    wide = {k: v.astype(mx.float32) if v.dtype == mx.bfloat16 else v for k, v in tensors.items()}
    mx.save_safetensors(file, wide, {"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))


# --- servers


@contextlib.contextmanager
def our_server(folder: Path) -> Iterator[Address]:
    """`mlx-qwen3 serve`, ready."""
    command = [sys.executable, "-m", "mlx_qwen3.cli", "serve", "--port", "0", "--ready-json"]
    with _process([*command, "--model", f"bench={folder}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline() or "{}")
        if not said:
            raise SystemExit("mlx-qwen3 serve did not start")
        yield Address(said["port"], "bench", said["key"])


@contextlib.contextmanager
def their_server(folder: Path) -> Iterator[Address]:
    """`mlx_lm server`, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder)]
    with _process([*command, "--port", str(port)], stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("mlx_lm server did not start")
            time.sleep(0.2)
        yield Address(port, "default_model")


@contextlib.contextmanager
def _process(command: Sequence[str], **more: Any) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, text=True, env=environment, **more
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


# --- clients


def prompts(count: int, longest: int, seed: int) -> list[str]:
    """Texts of mixed lengths, in characters, that begin differently."""
    rng = random.Random(seed)
    texts = []
    for place in range(count):
        size = max(8, int(longest * MIX[place % len(MIX)]))
        words = " ".join(rng.choice(WORDS) for _ in range(size))
        texts.append(f"{rng.randrange(10**6)} {words}"[:size])
    return texts


async def read_stream(address: Address, prompt: str, tokens: int, wait: float) -> Stream:
    """One client: asks after so many seconds, and notes when each piece arrives.

    Frames are taken apart afterwards, so that this process takes little of the machine.
    """
    await asyncio.sleep(wait)
    reader, writer = await asyncio.open_connection("127.0.0.1", address.port, limit=1 << 20)
    asked = time.perf_counter()
    writer.write(_request(address, prompt, tokens))
    lines: list[tuple[float, bytes]] = []
    while not lines or lines[-1][1] != b"data: [DONE]\n":
        line = await asyncio.wait_for(reader.readline(), PATIENCE)
        if not line:
            raise SystemExit(f"a stream broke off after {len(lines)} events")
        if line.startswith(b"data: "):
            lines.append((time.perf_counter(), line))
    writer.close()
    return _as_stream(asked, lines)


def _request(address: Address, prompt: str, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": address.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{address.port}\r\n"
        f"Authorization: Bearer {address.key}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _as_stream(asked: float, lines: Sequence[tuple[float, bytes]]) -> Stream:
    times, text, tokens = [], "", 0
    for when, line in lines[:-1]:
        event = json.loads(line[6:])
        if "choices" not in event:
            raise SystemExit(f"a server refused: {event}")
        piece = "".join(choice.get("text") or "" for choice in event["choices"])
        tokens = event["usage"]["completion_tokens"] if event.get("usage") else tokens
        text += piece
        times += [when] if piece else []
    pauses = tuple(after - before for before, after in pairwise(times))
    return Stream(tokens, times[0] - asked, pauses, text)


async def one_round(address: Address, texts: Sequence[str], tokens: int, stagger: float) -> Round:
    """All clients together."""
    start = time.perf_counter()
    streams = await asyncio.gather(
        *(read_stream(address, text, tokens, place * stagger) for place, text in enumerate(texts))
    )
    seconds = time.perf_counter() - start
    total = sum(one.tokens for one in streams)
    pauses = [pause for one in streams for pause in one.pauses] or [0.0]
    return Round(
        total,
        total / seconds,
        max(pauses),
        Spread.of(pauses).median,
        max(*pauses, *(one.waited for one in streams)),
        tuple(one.text for one in streams),
    )


# --- the comparison

SERVERS = {OWN: our_server, PEER: their_server}
FIGURES = (
    ("rate", "tokens/s of all streams"),
    ("pause", "longest pause, s"),
    ("median", "median pause, s"),
    ("silence", "longest silence, s"),
)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, list[Round]]:
    """Rounds of both sides in turn, the first of each dropped."""
    found: dict[str, list[Round]] = {side: [] for side in SERVERS}
    with contextlib.ExitStack() as stack:
        there = {side: stack.enter_context(make(folder)) for side, make in SERVERS.items()}
        for number in range(options.rounds + 1):
            texts = prompts(options.streams, options.longest, options.seed + number)
            tokens = options.tokens if number else options.warm_up or options.tokens
            for side, address in there.items():
                done = asyncio.run(one_round(address, texts, tokens, options.stagger))
                found[side].append(done)
                print(
                    f"{'round ' + str(number) if number else 'dropped'}, {side}: {done.tokens} "
                    f"tokens, {done.rate:.2f}/s, longest pause {done.pause:.3f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return {side: rounds[1:] for side, rounds in found.items()}


def report(found: dict[str, list[Round]]) -> dict[str, Any]:
    """A line for each figure; everything as data."""
    result: dict[str, Any] = {"rounds": {}, "figures": {}}
    for name, words in FIGURES:
        ours, theirs = ([getattr(one, name) for one in rounds] for rounds in found.values())
        ratio = Spread.of_ratios(ours, theirs) if all(theirs) else None
        sides = {OWN: Spread.of(ours), PEER: Spread.of(theirs), "ratio": ratio}
        shown = ", ".join(f"{side} {_shown(one)}" for side, one in sides.items() if one)
        print(f"{words}: {shown}", flush=True)
        result["figures"][name] = {side: asdict(one) for side, one in sides.items() if one}
    same = [
        ours.strip() == theirs.strip()  # mlx-lm drops a first space
        for one, other in zip(*found.values(), strict=True)
        for ours, theirs in zip(one.texts, other.texts, strict=True)
    ]
    print(f"texts that are equal: {sum(same)} of {len(same)}")
    result["equal_texts"] = [sum(same), len(same)]
    for side, rounds in found.items():
        result["rounds"][side] = [{**asdict(one), "texts": None} for one in rounds]
    return result


def _shown(spread: Spread) -> str:
    return f"{spread.median:.4g} ({spread.low:.4g} to {spread.high:.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", help="random 4-bit weights of this release's shape")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of scales and norms"
    )
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200, help="of each stream")
    parser.add_argument("--warm-up", type=int, help="tokens of the round that is dropped")
    parser.add_argument("--longest", type=int, default=2000, help="characters of a prompt")
    parser.add_argument("--stagger", type=float, default=0.5, help="seconds between two clients")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything there, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlx-qwen3-bench-") as name:
        folder = Path(name)
        random_shape(folder, options.shape) if options.shape else endless_demo(folder)
        if options.dtype == "float32":
            widen(folder)
        result = report(compare(folder, options))
    if options.json:
        said = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        options.json.write_text(json.dumps({"options": said, **result}, indent=1))


if __name__ == "__main__":
    main()
