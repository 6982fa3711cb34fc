"""Several processes and one folder: one after the other, at once, and killed midway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3 import load
from mlx_qwen3.engine.blocks import BLOCK_TOKENS
from mlx_qwen3.engine.folder import BlockFolder
from mlx_qwen3.engine.settings import PrefixCache
from tests.checkpoints import write_checkpoint
from tests.engine.turns import files
from tests.model.tiny_models import TINY_MODELS

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0  # seconds; only a failing test waits that long
HISTORY = "It was a bright cold day in April. " * 60

# Reads each prompt of argv[2:] in turn and prints what came of it.
ASK = """
import json, sys
from mlx_qwen3 import load
llm = load(sys.argv[1])
for prompt in sys.argv[2:]:
    done = llm.generate(prompt, raw=True, temperature=0, max_tokens=8)
    print(json.dumps([done.usage.cached_tokens, list(done.token_ids)]), flush=True)
"""
# The same with a disk on which every part of a block takes a while.
SLOWLY = """
import time
from mlx_qwen3.engine import writer
writer.EXIT_SECONDS = 0.2
from mlx_qwen3.engine.blocks import HostView
segments = HostView.segments
def slow(self, index):
    for segment in segments(self, index):
        time.sleep(0.2)
        yield segment
HostView.segments = slow
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for long prompts."""
    config = TINY_MODELS["dense"].config | {"max_position_embeddings": 8192}
    return write_checkpoint(tmp_path_factory.mktemp("roomy"), config)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, folder: Path) -> Start:
    """start(*prompts, script=...): a process that asks them, its store below tmp_path."""

    def start_process(*prompts: str, script: str = ASK) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(folder), *prompts]
        environment = {**os.environ, "MLX_QWEN3_CACHE": str(tmp_path)}
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start_process


def answers(process: subprocess.Popen[str]) -> list[Any]:
    """What a process printed: [cached tokens, token ids] of each prompt."""
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[str], list[int]]:
    """expected(prompt): the tokens without any store."""
    llm = load(folder, prefix_cache=False)

    def tokens(prompt: str) -> list[int]:
        return list(llm.generate(prompt, raw=True, temperature=0, max_tokens=8).token_ids)

    return tokens


def test_a_second_process_reads_only_what_is_new(
    start: Start, tmp_path: Path, expected: Callable[[str], list[int]]
) -> None:
    """The first one has ended right behind its answer: that is when its blocks were written."""
    ((cached, tokens),) = answers(start(HISTORY))
    assert (cached, tokens) == (0, expected(HISTORY))
    blocks = len(HISTORY) // BLOCK_TOKENS
    assert len(files(tmp_path / "prefixes")) == blocks
    ((cached, tokens),) = answers(start(HISTORY + "And then?"))
    assert cached == blocks * BLOCK_TOKENS
    assert tokens == expected(HISTORY + "And then?")


def test_writers_at_the_same_time(
    start: Start, tmp_path: Path, expected: Callable[[str], list[int]]
) -> None:
    """All write the same blocks, and some of their own."""
    prompts = [HISTORY + f"Question {number}? " * 30 for number in range(3)]
    processes = [start(prompt, HISTORY) for prompt in prompts]
    for prompt, process in zip(prompts, processes, strict=True):
        assert [ids for _, ids in answers(process)] == [expected(prompt), expected(HISTORY)]
    assert all(path.suffix == ".safetensors" for path in files(tmp_path / "prefixes"))
    for prompt in prompts:
        ((cached, tokens),) = answers(start(prompt))
        assert cached == (len(prompt) - 16) // BLOCK_TOKENS * BLOCK_TOKENS
        assert tokens == expected(prompt)


def test_killed_while_writing(
    start: Start, tmp_path: Path, expected: Callable[[str], list[int]]
) -> None:
    process = start(HISTORY, HISTORY[:50], script=SLOWLY + ASK)
    deadline = time.monotonic() + PATIENCE
    while not list(tmp_path.rglob("*.writing")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (half,) = list(tmp_path.rglob("*.writing"))
    ((cached, tokens),) = answers(start(HISTORY + "And then?"))
    assert cached == 0
    assert tokens == expected(HISTORY + "And then?")
    os.utime(half, (1, 1))
    BlockFolder(tmp_path / "prefixes", 10**9).shrink()
    assert not half.exists()
    assert len(files(tmp_path / "prefixes")) == len(HISTORY) // BLOCK_TOKENS


def test_a_process_does_not_wait_for_a_slow_disk(start: Start, tmp_path: Path) -> None:
    """It gives up what is not written in time, and leaves no half of it."""
    answers(start(HISTORY, script=SLOWLY + ASK))
    assert len(files(tmp_path / "prefixes")) < len(HISTORY) // BLOCK_TOKENS
    assert list(tmp_path.rglob("*.writing")) == []


def test_another_process_removes_what_this_one_counts_on(
    folder: Path, tmp_path: Path, expected: Callable[[str], list[int]]
) -> None:
    """Between finding a block and reading it: the rest is read as if it had never been there."""
    settings = PrefixCache(folder=tmp_path, memory_bytes=0)
    llm = load(folder, prefix_cache=settings)
    store: Any = llm.prefix_store
    llm.generate(HISTORY, raw=True, temperature=0, max_tokens=8)
    assert store.flush()
    present = store._disk.folder.present

    def find_and_remove(model: str, names: list[str]) -> int:
        count: int = present(model, names)
        for name in names[2:]:
            store._disk.folder.discard(model, name)
        return count

    store._disk.folder.present = find_and_remove
    done = llm.generate(HISTORY, raw=True, temperature=0, max_tokens=8)
    assert done.usage.cached_tokens == 2 * BLOCK_TOKENS
    assert list(done.token_ids) == expected(HISTORY)


def command_line(*args: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_qwen3.cli", *args]
    environment = {**os.environ, "MLX_QWEN3_CACHE": str(cache)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    options = ("--raw", "--json", "--temperature", "0", "--max-tokens", "8", "-m", str(folder))

    def generate(*more: str) -> Any:
        return json.loads(
            command_line("generate", HISTORY, *options, *more, cache=tmp_path).stdout
        )["token_ids"]

    plain = generate("--no-prefix-cache")
    assert generate("--prefix-cache-size", "0") == plain
    assert files(tmp_path / "prefixes") == []
    assert generate() == plain
    first = {path: path.stat().st_mtime_ns for path in files(tmp_path / "prefixes")}
    assert len(first) == len(HISTORY) // BLOCK_TOKENS
    assert generate() == plain
    second = {path: path.stat().st_mtime_ns for path in files(tmp_path / "prefixes")}
    assert first.keys() == second.keys()
    assert all(second[path] > first[path] for path in first)  # they were of use
    found = json.loads(command_line("doctor", "--json", cache=tmp_path).stdout)
    assert found["prefixes"] == str(tmp_path / "prefixes")
    assert found["prefixes_size"] == sum(path.stat().st_size for path in first)
    cleared = command_line("doctor", "--clear-prefix-cache", cache=tmp_path)
    assert "of prompts" in cleared.stderr
    assert files(tmp_path / "prefixes") == []
