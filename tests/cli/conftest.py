"""Checkpoints and runs that the tests of the commands share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlx_qwen3 import cli
from tests.checkpoints import EOS_TOKEN_IDS, make_tensors, write_weights
from tests.cli.terminals import Command, Run

THINK_END = 260  # the token </think>


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """command(*args): run a command line within this process."""

    def run(*args: str) -> Run:
        capsys.readouterr()
        code = cli.run([str(arg) for arg in args])
        return Run(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def thinker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that always thinks and never ends, neither its thought nor its reply."""
    folder = tmp_path_factory.mktemp("thinker") / "thinker"
    shutil.copytree(checkpoint, folder)
    tensors = make_tensors(json.loads((folder / "config.json").read_text()), seed=0)
    for token_id in (*EOS_TOKEN_IDS, THINK_END):
        tensors["lm_head.weight"][token_id] = 0  # far below the candidates
    write_weights(folder, tensors)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    template = settings["chat_template"].replace("enable_thinking is false", "false")
    template += "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}"
    settings["chat_template"] = template
    path.write_text(json.dumps(settings))
    return folder
