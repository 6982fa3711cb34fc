"""`mlx-qwen3 generate`: what goes where, and how it ends."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3 import hub
from mlx_qwen3.cli.terminal import DIM, RESET
from mlx_qwen3.demo import has_demo
from tests.cli.terminals import CTRL_C, Command, Run, Terminal

KEYS = {
    "text": str,
    "thinking": str,
    "tool_calls": list,
    "token_ids": list,
    "prompt_tokens": int,
    "completion_tokens": int,
    "finish_reason": str,
    "timing": dict,
    "peak_memory_bytes": int,
}
ENDLESS = ("--raw", "--max-kv-size", "300")  # all of it answer; the context does not end either
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {}}}


def as_json(run: Run) -> dict[str, Any]:
    """The one object that stdout holds."""
    assert (run.code, run.err) == (0, "")
    assert run.out.count("\n") == 1
    answer: dict[str, Any] = json.loads(run.out)
    return answer


@pytest.fixture
def ask(command: Command, checkpoint: Path) -> Command:
    """ask(*args): generate with the tiny checkpoint, 24 tokens unless told otherwise."""

    def ask(*args: str) -> Run:
        return command("generate", "-m", str(checkpoint), "--max-tokens", "24", *args)

    return ask


# --- what is printed


def test_json_is_the_object_of_the_contract(ask: Command) -> None:
    answer = as_json(ask("hi", "--json"))
    assert {key: type(value) for key, value in answer.items()} == KEYS
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["completion_tokens"] == len(answer["token_ids"]) <= 24
    assert set(map(type, answer["token_ids"])) == {int}
    timing = answer["timing"]
    assert list(timing) == ["load", "prefill", "decode", "tokens_per_second"]
    assert all(type(value) is float and value > 0 for value in timing.values())


def test_stdout_holds_only_the_answer(command: Command, thinker: Path) -> None:
    arguments = ("hi", "-m", str(thinker), "--thinking-budget", "4", "--max-tokens", "160")
    answer = as_json(command("generate", *arguments, "--seed", "1", "--json"))
    run = command("generate", *arguments, "--seed", "1")
    assert "Considering the limited time" in answer["thinking"]
    assert answer["text"]
    assert (run.code, run.out, run.err) == (0, answer["text"].removesuffix("\n") + "\n", "")


def test_the_demo_says_on_stderr_that_it_is_one(
    ask: Command, command: Command, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    asked = []

    def resolve(name: str, **_: object) -> Path:
        asked.append(name)
        return checkpoint

    monkeypatch.setattr(hub, "resolve", resolve)
    run = command("generate", "hi", "--max-tokens", "24", "--seed", "1")
    assert asked == ["demo"]
    assert run.out == ask("hi", "--seed", "1").out
    assert run.err.startswith("no --model given")
    assert "--model 0.6b" in run.err
    assert run.err.count("\n") == 1


# --- what is asked


def test_a_dash_reads_stdin(ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi, two\nlines\n"))
    piped = as_json(ask("-", "--json", "--seed", "1"))
    given = as_json(ask("hi, two\nlines", "--json", "--seed", "1"))
    assert piped["prompt_tokens"] == given["prompt_tokens"]
    assert piped["token_ids"] == given["token_ids"]


def test_stdin_that_is_no_text(ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8"))
    run = ask("-")
    assert run.code == 1
    assert run.err.startswith("mlx-qwen3: error: stdin cannot be read as text")


def test_raw_sends_nothing_but_the_prompt(ask: Command) -> None:
    assert as_json(ask("hello", "--raw", "--json"))["prompt_tokens"] == len("hello")


def test_system_and_tools_reach_the_prompt(ask: Command, tmp_path: Path) -> None:
    def prompt_tokens(*args: str) -> int:
        # Random weights may begin a tool call, and be warned of it on stderr.
        tokens: int = json.loads(ask("hi", "--json", *args).out)["prompt_tokens"]
        return tokens

    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([WEATHER]))
    plain = prompt_tokens()
    # One token is a byte or a special token; a turn adds two of these and two line ends.
    assert prompt_tokens("--system", "Be brief.") == plain + len("system" + "Be brief.") + 4
    assert prompt_tokens("--tools", str(tools)) > plain + len(json.dumps(WEATHER))


def test_no_thinking_closes_the_thought(ask: Command) -> None:
    plain = as_json(ask("hi", "--json"))["prompt_tokens"]
    closed = as_json(ask("hi", "--json", "--no-thinking"))["prompt_tokens"]
    assert closed == plain + len("T\n\nT\n\n")  # T: a tag, one token


# --- how it is drawn


def test_a_seed_gives_the_same_text_again(ask: Command) -> None:
    first, again, other = (ask("hi", "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other


def test_an_answer_ends_before_a_stop_string(ask: Command) -> None:
    text = as_json(ask("hi", "--temperature", "0", "--json"))["text"]
    stop = text[5:7]
    cut = as_json(ask("hi", "--temperature", "0", "--json", "--stop", "never", "--stop", stop))
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"


# --- how it fails


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["hi", "--temperature", "-1"], "temperature is -1.0"),
        (["hi", "--kv-bits", "3"], "kv_bits"),
        (["hi", "--max-tokens", "9999"], "do not fit the context of 512"),
        (["hi", "-m", "./no-such-folder"], "no-such-folder"),
        (["hi", "--dtype", "int3"], "int3"),
        (["hi", "--tools", "no-such-file.json"], "no-such-file.json: cannot be read ("),
        (["", "--raw"], "the prompt is empty"),
    ],
)
def test_a_failure_is_one_line_and_1(ask: Command, args: list[str], said: str) -> None:
    run = ask(*args)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("mlx-qwen3: error: ")
    assert said in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize("text", ["{", '{"name": "weather"}', '["weather"]'])
def test_tools_that_are_none(ask: Command, tmp_path: Path, text: str) -> None:
    file = tmp_path / "tools.json"
    file.write_text(text)
    run = ask("hi", "--tools", str(file))
    assert (run.code, run.out, run.err.count("\n")) == (1, "", 1)
    assert f"--tools {file}: " in run.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["hi", "--tempersture", "1"], "--tempersture"),
        (["hi", "--max-tokens", "many"], "--max-tokens"),
        ([], "missing argument"),
        (["hi", "--raw", "--system", "Be brief."], "--raw leaves no place for --system"),
    ],
)
def test_wrong_usage_is_2(ask: Command, args: list[str], said: str) -> None:
    run = ask(*args)
    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert said in run.err.lower()


# --- as a process


def start(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlx_qwen3.cli", "generate", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **options
    )


def test_an_interruption_is_130_and_ends_the_line(thinker: Path) -> None:
    with start("hi", "-m", str(thinker), *ENDLESS) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        said = process.stderr.read()
        code = process.wait()
    assert (code, said) == (130, b"")
    assert first
    assert rest.endswith(b"\n")


def test_a_reader_that_leaves_is_no_error(thinker: Path) -> None:
    with start("hi", "-m", str(thinker), *ENDLESS) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        said = process.stderr.read()
        process.wait()
    assert said == b""


def test_on_a_terminal(thinker: Path) -> None:
    """Thinking is dimmed, the answer is not, and the last line has the figures."""
    args = ("generate", "hi", "-m", str(thinker), "--thinking-budget", "4", "--seed", "1")
    with Terminal(*args, "--max-tokens", "160") as terminal:
        assert terminal.wait_for_end() == 0
    thinking, rest = terminal.screen.split(RESET, 1)
    assert thinking.startswith(DIM)
    assert "Considering the limited time" in thinking
    answer, _, figures = rest.rpartition(DIM)
    assert answer.startswith("\n\n")
    assert answer.endswith("\n")
    assert answer.strip()
    assert "\x1b" not in answer
    assert re.fullmatch(
        r"23 tokens read in [\d.]+ s · 160 written \(\d+ of them thinking\) "
        r"at [\d.]+ tokens/s · peak memory [\d.]+ MB.*",
        figures.removesuffix(f"{RESET}\n").replace("\n", " · "),  # in a narrow terminal two lines
    )


def test_interrupted_on_a_terminal(thinker: Path) -> None:
    """The styling ends with the reply."""
    with Terminal("generate", "hi", "-m", str(thinker), "--max-kv-size", "300") as terminal:
        terminal.wait_for(DIM)
        terminal.type(CTRL_C)
        assert terminal.wait_for_end() == 130
    assert terminal.screen.endswith(f"{RESET}\n")


# --- with a model that knows something

needs_demo = pytest.mark.skipif(
    not has_demo("demo"), reason="the demo model is not in this checkout"
)


@needs_demo
def test_the_demo_can_add(command: Command) -> None:
    run = command("generate", "What is 27 + 58?", "--seed", "1")
    assert run.code == 0
    assert "85" in run.out


@needs_demo
def test_the_demo_answers_at_once_when_told_to(command: Command) -> None:
    run = command("generate", "What is 27 + 58?", "--seed", "1", "--no-thinking", "--json")
    answer = json.loads(run.out)
    assert (run.code, answer["thinking"], answer["finish_reason"]) == (0, "", "stop")
    assert answer["text"]


# --- the form of an answer


def test_a_schema_file(ask: Command, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    values = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    schema.write_text(json.dumps({**values, "additionalProperties": False}))
    arguments = ("hi", "--no-thinking", "--schema", str(schema))
    assert json.loads(ask(*arguments).out)["n"] in (1, 2)
    spaced = ask(*arguments, "--whitespace", "spaced", "--json")
    assert as_json(spaced)["text"].startswith('{"n": ')


def test_a_regex_and_a_grammar_file(ask: Command, tmp_path: Path) -> None:
    assert re.fullmatch("[0-9]{3}\n", ask("hi", "--no-thinking", "--regex", "[0-9]{3}").out)
    grammar = tmp_path / "answer.lark"
    grammar.write_text('start: "yes" | "no"')
    assert ask("hi", "--no-thinking", "--grammar", str(grammar)).out in ("yes\n", "no\n")


def test_a_call_that_is_asked_for(ask: Command, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([WEATHER]))
    arguments = ("--tools", str(tools), "--tool-choice", "weather", "--max-tokens", "80")
    answer = as_json(ask("hi", "--no-thinking", *arguments, "--json"))
    assert answer["tool_calls"] == [{"name": "weather", "arguments": {}}]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--schema", "no-such-file.json"], "--schema no-such-file.json: cannot be read"),
        (["--regex", "("], "regex cannot be enforced"),
        (["--tool-choice", "required"], "there are no tools"),
    ],
)
def test_a_form_that_cannot_be(ask: Command, args: list[str], said: str) -> None:
    run = ask("hi", *args)
    assert (run.code, run.out, run.err.count("\n")) == (1, "", 1)
    assert said in run.err


# --- speculation


def test_speculation_leaves_the_reply_as_it_is(ask: Command, checkpoint: Path) -> None:
    prompt = ("ha ha ha ha ha", "--temperature", "0", "--json", "--raw")
    plain = as_json(ask(*prompt, "--speculation", "off"))
    for options in ((), ("--speculation", "lookup"), ("--draft", str(checkpoint))):
        assert as_json(ask(*prompt, *options))["token_ids"] == plain["token_ids"]
    refused = ask("hi", "--speculation", "draft")
    assert refused.code == 1
    assert "needs a draft model" in refused.err
