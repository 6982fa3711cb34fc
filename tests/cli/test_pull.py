"""`mlx-qwen3 pull`: the folder on stdout, the bar on a terminal only."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlx_qwen3 import hub
from mlx_qwen3.cli import display, run


def test_the_folder_is_all_that_stdout_gets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = {}

    def resolve(name: str, **options: object) -> Path:
        asked.update(options, name=name)
        return tmp_path

    monkeypatch.setattr(hub, "resolve", resolve)
    assert run(["pull", "8b", "--revision", "v2"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{tmp_path}\n", "")
    # update: a pull asks for what is new; no progress: stderr is not a terminal here.
    assert asked == {"name": "8b", "revision": "v2", "update": True, "progress": None}


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with display.download_bar("8b") as progress:
        assert progress is not None
        assert capsys.readouterr().err == ""  # nothing before the first bytes
        progress(1_000_000, 2_000_000)
        progress(2_000_000, 2_000_000)
    assert "8b" in capsys.readouterr().err
