"""mlx-lm's learned methods, called with our text and our conversions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3 import cli
from mlx_qwen3.cli.making import Task
from mlx_qwen3.errors import OptionError, Qwen3Error
from mlx_qwen3_convert.calibration import read_text, read_windows
from mlx_qwen3_convert.evaluate import evaluate, exact_reference, measure_size
from mlx_qwen3_convert.job import Options, convert
from mlx_qwen3_convert.learned import Learning, learned
from tests.checkpoints import write_checkpoint
from tests.model.tiny_models import TINY_MODELS

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "torch_dtype": "bfloat16",
}
CONFIGS = {name: TINY_MODELS[name].config | SIZES for name in ("dense", "moe")}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short calibration text."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(read_text(None, "calibration")[:1500], encoding="utf-8")
    return file


def source(name: str, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", CONFIGS[name], 1, dtype="bfloat16")


def divergence(folder: Path, original: Path) -> float:
    windows = read_windows(original, text=read_text(None, "evaluation"), context=64, tokens=512)
    found = evaluate(folder, windows, exact_reference(original, windows)).divergence
    assert found is not None
    return found.mean


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_gptq_is_better_than_rounding(
    name: str, text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = source(name, tmp_path)
    out = learned("gptq", original, tmp_path / "out", Learning(calibration=text, context=64))
    assert capfd.readouterr().out == ""
    rounded = convert(
        original,
        tmp_path / "rounded",
        Options(bits=4, rules={"model.embed_tokens": "6", "lm_head": "4"}),
    ).folder
    assert measure_size(out).bits_per_weight <= measure_size(rounded).bits_per_weight
    assert divergence(out, original) < divergence(rounded, original)
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    if name == "moe":
        assert config["quantization"]["model.layers.0.mlp.gate"]["bits"] == 8
    assert (out / "tokenizer.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rounded", "source"]


@pytest.mark.slow
def test_dwq_improves_on_what_it_starts_from(text: Path, tmp_path: Path) -> None:
    original = source("dense", tmp_path)
    how = Learning(bits=3, calibration=text, context=64, epochs=4, learning_rate=1e-3, batch_size=4)
    out = learned("dwq", original, tmp_path / "out", how)
    start = convert(original, tmp_path / "start", Options(bits=3)).folder
    assert measure_size(out) == measure_size(start)
    assert divergence(out, original) < divergence(start, original)


@pytest.mark.slow
def test_awq_writes_what_loads(text: Path, tmp_path: Path) -> None:
    original = source("dense", tmp_path)
    how = Learning(calibration=text, context=256)
    out = learned("awq", original, tmp_path / "out", how)
    assert 0 < divergence(out, original) < 1


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("hqq", "dense", {}, "expected one of gptq, awq, dwq"),
    ("gptq", "dense", {"bits": 5}, "makes 2, 4 and 8"),
    ("awq", "moe", {}, "dense Qwen3 models only"),
    ("gptq", "dense", {"context": 4096}, "fewer than 4096 tokens"),
]


@pytest.mark.parametrize(("method", "name", "options", "said"), WRONG)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    method: str, name: str, options: dict[str, Any], said: str, text: Path, tmp_path: Path
) -> None:
    how = Learning(**{"calibration": text, "context": 64, **options})
    original = source(name, tmp_path)
    with pytest.raises(OptionError, match=said):
        learned(method, original, tmp_path / "out", how)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_exists_is_kept(text: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--overwrite"):
        learned("gptq", source("dense", tmp_path), tmp_path)


# --- through the command, on the demo model -----------------------------------------------------


@pytest.fixture(scope="module")
def one_window(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration text of one window, 512 tokens, and a bit."""
    file = tmp_path_factory.mktemp("text") / "window.txt"
    file.write_text(read_text(None, "calibration")[:1000], encoding="utf-8")
    return file


def learn(method: str, out: Path, *options: str | Path) -> None:
    args = ["convert", "demo", "--out", out, "--learned", method, *options]
    assert cli.run([str(arg) for arg in args]) == 0


def evaluated(*folders: Path, capsys: pytest.CaptureFixture[str]) -> list[float]:
    """What `eval` says of each: the mean divergence from the demo model."""
    capsys.readouterr()
    short = ("--tokens", "1024", "--context", "256", "--reference", "demo", "--json")
    assert cli.run(["eval", *map(str, folders), *short]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    return [model["kl"]["mean"] for model in models]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "bits"), [("gptq", "2"), ("awq", "3"), ("dwq", "3")])
def test_the_command_learns_on_the_demo_model(
    method: str,
    bits: str,
    one_window: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, plain = tmp_path / "out", tmp_path / "plain"
    learn(method, out, "--bits", bits, "--calibration", one_window)
    assert capsys.readouterr().out == f"{out}\n"
    assert cli.run(["convert", "demo", "--out", str(plain), "--bits", bits]) == 0
    learned_kl, plain_kl = evaluated(out, plain, capsys=capsys)
    assert learned_kl < plain_kl
    card = (out / "README.md").read_text()
    assert f"quantized with mlx-lm's {method}" in card
    assert "bits per weight" in card
    assert not list(tmp_path.glob("*.learning"))
    # The same arguments again, and an upload in mind: it is known to be made.
    task = Task("demo", str(out), Options(bits=int(bits)), None, method, str(one_window))
    assert task.is_made()


def test_what_mlx_lm_cannot_do_is_one_line(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises: here, its module is not there."""
    monkeypatch.setitem(sys.modules, "mlx_lm.quant.gptq", None)
    with pytest.raises(Qwen3Error, match="mlx-lm's gptq cannot run on this model") as caught:
        learned(
            "gptq",
            source("dense", tmp_path),
            tmp_path / "out",
            Learning(calibration=text, context=64),
        )
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


COMMAND_WRONG = [
    (["--learned", "hqq"], "expected one of gptq, awq, dwq"),
    (["--learned", "gptq", "--recipe", "4bit"], "makes affine formats of --bits"),
    (["--learned", "awq", "--mode", "mxfp4"], "makes affine formats of --bits"),
    (["--learned", "gptq", "--bits", "3"], "makes 2, 4 and 8"),
]


@pytest.mark.parametrize(("options", "said"), COMMAND_WRONG)
def test_the_command_refuses_in_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli.run(["convert", "demo", "--out", str(tmp_path / "out"), *options]) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
