"""examples/quantization_scripts, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mlx_qwen3 import load
from mlx_qwen3.demo import demo_folder
from tests.checkpoints import write_checkpoint
from tests.convert.readers.formats import write_gptq
from tests.hub_server import HubServer
from tests.model.tiny_models import TINY_MODELS

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples/quantization_scripts"
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "torch_dtype": "bfloat16"}
CONFIG = TINY_MODELS["dense"].config | SIZES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "tiny", CONFIG, 1, dtype="bfloat16")


def run(name: str, *args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *map(str, args)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_script_is_run_here() -> None:
    found = {path.name for path in SCRIPTS.glob("*.py")}
    assert found == {"convert_folder.py", "convert_and_upload.py", "sweep_recipes_and_plot.py"}


def test_a_folder_of_models(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_checkpoint(models / "plain", CONFIG, 1, dtype="bfloat16")
    write_gptq(models / "packed", CONFIG, group_size=32)
    broken = write_checkpoint(models / "broken", CONFIG, 1)
    (broken / "model.safetensors").write_bytes(b"short")
    (models / "notes.txt").write_text("no model")
    done = run("convert_folder.py", models, tmp_path / "out")
    assert done.returncode == 1  # one of them is broken
    assert "broken" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["packed-mlx", "plain-mlx"]
    assert load(tmp_path / "out/plain-mlx").generate("hi", max_tokens=2, seed=1).token_ids
    again = run("convert_folder.py", models, tmp_path / "out")
    assert again.stdout == ""  # what is there is left alone


def test_the_demo_model_is_published(tmp_path: Path) -> None:
    folder = tmp_path / "fine-tune"
    folder.symlink_to(demo_folder("demo"))
    server = HubServer("someone/other", {})
    try:
        environment = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": "hf_write",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        done = run("convert_and_upload.py", folder, "someone/mine", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == f"{server.url}/someone/mine"
        assert (tmp_path / "mine/model.safetensors").is_file()
        assert {"model.safetensors", "README.md"} <= set(server.repos["someone/mine"])
        refused = run("convert_and_upload.py", folder, "mine", **environment)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    finally:
        server.close()


def test_a_sweep_has_a_table_and_a_picture(source: Path, tmp_path: Path) -> None:
    picture = tmp_path / "quality.svg"
    recipes = ("4bit", "8bit", "mixed-4.5")
    done = run("sweep_recipes_and_plot.py", source, picture, *recipes)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:]}
    assert list(rows) == list(recipes)
    assert float(rows["8bit"][3]) < float(rows["mixed-4.5"][3]) < float(rows["4bit"][3])
    drawn = ET.fromstring(picture.read_text()).itertext()
    assert set(recipes) <= set(drawn)
    wrong = run("sweep_recipes_and_plot.py", source, picture, "5.bit")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
