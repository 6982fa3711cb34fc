"""`mlx-qwen3 eval`: the table, the JSON and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_qwen3_convert import evaluate
from mlx_qwen3_convert.job import Options, convert
from tests.checkpoints import write_checkpoint
from tests.cli.terminals import Command
from tests.model.tiny_models import TINY_MODELS

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "torch_dtype": "bfloat16"}
CONFIG = TINY_MODELS["dense"].config | SIZES


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("eval") / "source", CONFIG, 1, dtype="bfloat16")


@pytest.fixture(scope="module")
def quantized(source: Path) -> Path:
    return convert(source, source.with_name("quantized"), Options(bits=4)).folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mlx-qwen3/references"


SHORT = ("--tokens", "60", "--context", "30")


def test_the_table_without_a_reference(source: Path, quantized: Path, command: Command) -> None:
    done = command("eval", str(source), str(quantized), *SHORT)
    assert (done.code, done.err) == (0, "")
    header, first, second, *_ = done.out.splitlines()
    assert header.split() == ["MODEL", "SIZE", "BITS/WEIGHT", "PERPLEXITY"]
    assert first.split()[0] == "source"
    assert "16.00" in first
    assert second.split()[0] == "quantized"
    assert "58 tokens predicted" in done.out


def test_the_table_with_a_reference(source: Path, quantized: Path, command: Command) -> None:
    done = command("eval", str(source), str(quantized), "--reference", str(source), *SHORT)
    _, first, second, *_ = done.out.splitlines()
    assert first.split()[-4:] == ["0.0000", "0.0000", "0.0000", "100.0%"]
    mean, p99, largest = (float(word) for word in second.split()[-4:-1])
    assert 0 < mean < p99 <= largest
    assert "nats per token" in done.out
    assert "lower bound" not in done.out  # a small vocabulary is kept whole


def test_json_and_what_is_kept(
    source: Path, quantized: Path, cache: Path, command: Command
) -> None:
    args = ("eval", str(quantized), "--reference", str(source), "--json", *SHORT)
    kept = json.loads(command(*args).out)
    assert len(list(cache.iterdir())) == 1
    exact = json.loads(command(*args, "--exact").out)
    assert len(list(cache.iterdir())) == 1
    model = kept["models"][0]
    assert model["name"] == "quantized"
    assert model["tokens"] == 58
    assert model["bits_per_weight"] == pytest.approx(4.5, abs=0.1)
    assert model["kl"]["exact"] is True
    assert model["kl"]["mean"] == pytest.approx(exact["models"][0]["kl"]["mean"], rel=1e-4)


def test_recipes_without_converting(source: Path, tmp_path: Path, command: Command) -> None:
    recipes = ["4bit", "mixed-4.5", "auto-4.5", "8bit"]
    options = [word for recipe in recipes for word in ("--recipe", recipe)]
    picture = tmp_path / "quality.svg"
    done = command("eval", str(source), *options, "--plot", str(picture), "--json", *SHORT)
    assert done.code == 0
    models = {model["name"]: model for model in json.loads(done.out)["models"]}
    assert list(models) == ["source", *recipes]
    assert models["mixed-4.5"]["bits_per_weight"] <= 4.5
    assert models["auto-4.5"]["bits_per_weight"] <= 4.5
    divergences = {name: model["kl"]["mean"] for name, model in models.items()}
    assert divergences["source"] == 0
    assert divergences["8bit"] < divergences["auto-4.5"] < divergences["4bit"]
    drawn = picture.read_text()
    assert all(recipe in drawn for recipe in recipes)


def test_a_text_of_the_users(source: Path, tmp_path: Path, command: Command) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello, hello, hello. " * 3)
    done = command("eval", str(source), "--text", str(text), "--json")
    assert json.loads(done.out)["models"][0]["tokens"] == 62  # one window, a token per byte


def test_the_card_of_a_folder(source: Path, quantized: Path, command: Command) -> None:
    card = quantized / "README.md"
    before = card.read_text()
    assert command("eval", str(quantized), *SHORT).code == 0
    assert card.read_text() == before  # nobody asked
    args = ("eval", str(quantized), "--reference", str(source), "--card", "--json", *SHORT)
    figures = json.loads(command(*args).out)["models"][0]
    after = card.read_text()
    assert after.startswith(before)
    assert "58 tokens of the text bundled with mlx-qwen3 in windows of 30" in after
    assert f"| KL divergence, mean | {figures['kl']['mean']:.4f} |" in after
    assert "from source" in after
    assert str(source) not in after


WRONG = [
    (("--card",), "README.md is not there"),
    (("--card", "--recipe", "4bit"), "--recipe makes none"),
    (("--plot", "picture.png"), "svg"),
    (("--recipe", "4bit", "--reference", "x"), "--recipe takes one MODEL"),
    (("--recipe", "4bit", "--exact"), "--exact"),
    (("--recipe", "5.bit"), "no recipe"),
    (("--text", "absent.txt"), "absent.txt"),
    (("--tokens", "1"), "tokens is 1"),
    (("--dtype", "int8"), "int8"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_cannot_be_is_one_line(
    options: tuple[str, ...], said: str, source: Path, command: Command
) -> None:
    done = command("eval", str(source), *options)
    assert (done.code, done.out) == (1, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_reference_of_another_vocabulary_is_refused(
    source: Path, tmp_path: Path, command: Command
) -> None:
    other = write_checkpoint(tmp_path / "other", CONFIG | {"vocab_size": 300})
    done = command("eval", str(source), "--reference", str(other), *SHORT)
    assert done.code == 1
    assert "do not share a vocabulary" in done.err


def test_an_interrupted_measurement_ends_quietly(
    source: Path, cache: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "score", interrupt)
    done = command("eval", str(source), "--reference", str(source), *SHORT)
    assert (done.code, done.out, done.err) == (130, "", "")
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
