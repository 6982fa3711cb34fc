"""The command line as a process: what it imports, how it fails, how fast it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from mlx_qwen3 import cli
from mlx_qwen3._version import __version__
from mlx_qwen3.errors import ModelNotFoundError

HEAVY = (
    "mlx",
    "numpy",
    "transformers",
    "huggingface_hub",
    "mlx_lm",
    "tokenizers",
    "jinja2",
    "rich",
)
LOADED = "import sys; print([name for name in {heavy} if name in sys.modules])"


def python(script: str) -> str:
    return subprocess.check_output([sys.executable, "-c", script], text=True)


def mlx_qwen3(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_qwen3.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "script",
    [
        "import mlx_qwen3.cli",
        "import mlx_qwen3",
        "from mlx_qwen3.cli import run; run(['--help'])",
        "from mlx_qwen3.cli import run; run(['generate', '--help'])",
        "from mlx_qwen3.cli import run; run(['--version'])",
    ],
)
def test_nothing_heavy_is_imported(script: str) -> None:
    output = python(f"{script}\n{LOADED.format(heavy=HEAVY)}")
    assert output.splitlines()[-1] == "[]"


def test_a_reply_needs_only_what_it_uses(checkpoint: Path) -> None:
    arguments = ["generate", "hi", "--max-tokens", "2", "--model", str(checkpoint)]
    unused = ("numpy", "transformers", "huggingface_hub", "mlx_lm", "rich")
    script = f"from mlx_qwen3.cli import run; run({arguments})\nprint()"
    output = python(f"{script}\n{LOADED.format(heavy=unused)}")
    assert output.splitlines()[-1] == "[]"


def test_help_is_fast() -> None:
    def once() -> float:
        began = time.perf_counter()
        mlx_qwen3("--help")
        return time.perf_counter() - began

    assert min(once() for _ in range(4)) < 0.35


@pytest.mark.parametrize(
    "command", ["generate", "chat", "serve", "convert", "eval", "bench", "models", "pull", "doctor"]
)
def test_every_command_has_help(command: str) -> None:
    done = mlx_qwen3(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: mlx-qwen3 {command}")


def test_help_lists_only_what_exists() -> None:
    done = mlx_qwen3("--help")
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line]
    assert sorted(listed) == [
        "bench",
        "chat",
        "convert",
        "doctor",
        "eval",
        "generate",
        "models",
        "pull",
        "serve",
    ]


def test_version() -> None:
    assert mlx_qwen3("--version").stdout == f"mlx-qwen3 {__version__}\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Usage:"),
        (["modles"], "No such command 'modles'"),
        (["models", "--no"], "No such option"),
        (["pull"], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage_is_2(args: list[str], said: str) -> None:
    done = mlx_qwen3(*args)
    assert done.returncode == 2
    assert said.lower() in (done.stdout + done.stderr).lower()
    assert done.stderr.count("\n") <= 1


def test_a_failure_is_one_line_and_1() -> None:
    done = mlx_qwen3("pull", "8c")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith('mlx-qwen3: error: No model or folder is called "8c"')
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["--debug", "pull", "8c"], ["pull", "8c", "--debug"]])
def test_debug_shows_where_it_came_from(args: list[str]) -> None:
    done = mlx_qwen3(*args)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "ModelNotFoundError" in done.stderr


def test_debug_after_a_double_dash_is_an_argument() -> None:
    assert cli.split_debug(["--debug", "pull", "--", "--debug"]) == (
        ["pull", "--", "--debug"],
        True,
    )
    assert cli.split_debug(["pull", "--", "--debug"]) == (["pull", "--", "--debug"], False)


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        command = [sys.executable, "-m", "mlx_qwen3.cli", "--help"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 1


def failing_app(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make every command line raise `error`."""
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None:
        """A second one, so that the first has a name."""

    monkeypatch.setattr(cli, "build_app", lambda: app)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ModelNotFoundError("no\nsuch model"), 1, "mlx-qwen3: error: no such model\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "mlx-qwen3: error: ZeroDivisionError: division by zero; run with --debug for the "
            "traceback\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(5), 5, ""),
        (EOFError(), 1, "mlx-qwen3: error: stopped: the input ended\n"),
    ],
)
def test_every_end_has_its_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    failing_app(monkeypatch, error)
    assert cli.run(["fail"]) == code
    assert capsys.readouterr().err.lstrip("\n") == said
