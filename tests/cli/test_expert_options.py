"""--experts and --memory-budget: what they do, what replies and `bench` say of it, wrong usage."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tests.cli.terminals import Command, Terminal

BUDGET = ("--experts", "streamed", "--memory-budget", "4MB")
QUESTION = ("generate", "What is 27 + 58?", "-m", "demo-moe", "--temperature", "0")


def answer(command: Command, *args: str) -> dict[str, Any]:
    done = command(*QUESTION, "--no-prefix-cache", "--json", *args)
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_a_reply_within_a_budget_is_the_same(command: Command) -> None:
    plain, streamed = answer(command), answer(command, *BUDGET)
    experts = streamed.pop("experts")
    measured = ("timing", "peak_memory_bytes")
    assert all(streamed[name] == plain[name] for name in plain if name not in measured)
    assert set(streamed) == set(plain)
    assert set(experts) == {"hit_rate", "bytes_per_token", "prompt_bytes"}
    assert 0 < experts["hit_rate"] < 1
    assert experts["prompt_bytes"] > experts["bytes_per_token"] > 0


def test_a_person_is_told() -> None:
    with Terminal(*QUESTION, "--memory-budget", "4MB", columns=200) as terminal:
        terminal.wait_for("% of the experts in memory")
        terminal.wait_for("read a token")
        assert terminal.wait_for_end() == 0


def test_chat_takes_them_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2 + 2?\n"))
    done = command("chat", "-m", "demo-moe", "--temperature", "0", *BUDGET)
    assert done.code == 0
    assert "4" in done.out


def test_bench_says_what_was_read(command: Command) -> None:
    short = ("--prompt", "6", "--tokens", "3", "--rounds", "1")
    done = command("bench", "--model", "demo-moe", "--memory-budget", "4MB", "--json", *short)
    assert done.code == 0
    (length,) = json.loads(done.out)["sides"]["mlx-qwen3"]["lengths"]
    assert 0 <= length["expert_hit_rate"] <= 1
    assert length["expert_bytes_read_per_token"] >= 0
    table = command("bench", "--model", "demo-moe", "--memory-budget", "4MB", *short)
    assert "experts found in memory" in table.out
    assert "experts read per token" in table.out


@pytest.mark.parametrize("subcommand", [("generate", "hi"), ("chat",), ("bench",)])
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--memory-budget", "much"), 2, "--memory-budget much: expected a size such as 500MB"),
        (("--experts", "cached"), 1, "experts is 'cached'; expected one of resident, streamed"),
    ],
)
def test_what_is_no_option(
    subcommand: tuple[str, ...], options: tuple[str, ...], code: int, said: str, command: Command
) -> None:
    run = command(*subcommand, "--model", "demo-moe", *options)
    assert run.code == code
    assert said in run.err


def test_a_budget_too_small_is_one_line(command: Command) -> None:
    run = command(*QUESTION, "--memory-budget", "1MB")
    assert run.code == 1
    assert run.err.count("\n") == 1
    assert "allow 2.4 MB (memory_budget, --memory-budget)" in run.err


@pytest.mark.parametrize("other", ["--steps", "--startup"])
def test_what_does_not_go_together(other: str, command: Command) -> None:
    run = command("bench", "--model", "demo-moe", *BUDGET, other)
    assert run.code == 2
