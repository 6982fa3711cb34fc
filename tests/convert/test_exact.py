"""Quantized sources through the whole command: how far the result is from its source.

The source is dequantized to float32 (what the readers read is checked weight by weight in
readers/test_reference.py) and run in float32; so is what `convert` made of it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_qwen3 import cli
from mlx_qwen3.model.weights import load_model
from mlx_qwen3_convert.readers import open_source
from tests.checkpoints import write_weights
from tests.convert.readers.cases import CASES, CONFIGS
from tests.model.tiny_models import MEDIUM

# A seed whose routers have no near-tie: any rounding may turn one, and another expert answers.
SEED = 5
NAMES = [
    "gptq",
    "gptq-8",
    "gptq-asym",
    "gptq-v2",
    "gptq-per-row",
    "awq",
    *(f"gguf-{kind}" for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K")),
]
FLOAT32_BOUND, DEFAULT_BOUND = 1e-3, 3e-2  # of the logits' standard deviation

Logits = NDArray[np.float32]
Made = Callable[[str, str], tuple[Path, Logits]]


def logits(folder: Path) -> Logits:
    return np.array(load_model(folder, dtype="float32")([list(MEDIUM.encode())]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """made(case, config): the source, and the logits of what it stands for."""
    root = tmp_path_factory.mktemp("exact")

    @functools.cache
    def make(case: str, config: str) -> tuple[Path, Logits]:
        folder = root / f"{case}-{config}"
        path = CASES[case].write(folder, CONFIGS[config], SEED, **CASES[case].options)
        return path, logits(dequantized(path, root / f"{case}-{config}-float32"))

    return make


def dequantized(path: Path, folder: Path) -> Path:
    """The source as a float32 checkpoint."""
    source = open_source(path)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**source.config, "torch_dtype": "float32"}))
    tensors = {
        name: np.array(source.rows(name, 0, tensor.shape[0]).astype(mx.float32))
        for name, tensor in source.tensors.items()
    }
    write_weights(folder, tensors)
    return folder


def convert(
    path: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> dict[str, Any]:
    capsys.readouterr()
    code = cli.run(["convert", str(path), "--out", str(out), "--json", *options])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return dict(json.loads(printed.out))


def error(found: Logits, expected: Logits) -> float:
    """The largest difference, in standard deviations of the logits."""
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("case", NAMES)
def test_an_exact_import_computes_what_its_source_does(
    case: str, config: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, expected = made(case, config)
    said = convert(path, tmp_path / "exact", capsys, "--dtype", "float32")
    assert said["recipe"] is None
    assert set(said["actions"]) == {"exact", "copied"}
    assert error(logits(tmp_path / "exact"), expected) < FLOAT32_BOUND

    said = convert(path, tmp_path / "default", capsys)
    assert said["dtype"] in ("float16", "bfloat16")
    assert error(logits(tmp_path / "default"), expected) < DEFAULT_BOUND


@pytest.mark.parametrize("config", CONFIGS)
def test_sorted_inputs_have_no_exact_form(
    config: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """desc_act: requantized by default and said so; as floats nothing is lost."""
    path, expected = made("gptq-desc-act", config)
    said = convert(path, tmp_path / "default", capsys)
    assert set(said["actions"]) == {"requantized", "copied"}
    assert {tensor["from"] for tensor in said["tensors"] if tensor["action"] == "requantized"} == {
        "GPTQ 4-bit g64 desc_act"
    }
    convert(path, tmp_path / "floats", capsys, "--recipe", "bf16", "--dtype", "float32")
    assert error(logits(tmp_path / "floats"), expected) < FLOAT32_BOUND
    convert(path, tmp_path / "eight", capsys, "--bits", "8")
    assert error(logits(tmp_path / "eight"), expected) < error(
        logits(tmp_path / "default"), expected
    )


def test_scales_keep_the_type_of_the_source(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not that of config.json: bfloat16 would round what float16 scales can hold."""
    path, expected = made("gguf-Q4_K", "dense")
    assert convert(path, tmp_path / "kept", capsys)["dtype"] == "float16"
    convert(path, tmp_path / "rounded", capsys, "--dtype", "bfloat16")
    kept, rounded = (error(logits(tmp_path / name), expected) for name in ("kept", "rounded"))
    assert kept < rounded / 2


def test_bfloat16_cannot_hold_every_zero(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AWQ with bfloat16 scales: zero * scale has 12 bits, of which 8 are kept by default."""
    path, expected = made("awq-32", "dense")
    assert convert(path, tmp_path / "default", capsys)["dtype"] == "bfloat16"
    assert DEFAULT_BOUND < error(logits(tmp_path / "default"), expected) < 2 * DEFAULT_BOUND
    convert(path, tmp_path / "more", capsys, "--dtype", "float16")
    assert error(logits(tmp_path / "more"), expected) < DEFAULT_BOUND


def test_a_rounded_scale_is_made_up_for_by_its_bias() -> None:
    """Half the error of rounding both; and nothing is touched that the type can hold."""
    from mlx_qwen3_convert.quantize import _round_scales

    random = np.random.default_rng(0)
    scales = random.uniform(0.01, 0.02, (64, 4)).astype(np.float32)
    biases = (-7.3 * scales).astype(np.float32)
    q = np.arange(16, dtype=np.float32)[:, None, None]
    exact = q * scales + biases

    def mean_error(parts: list[mx.array]) -> float:
        s, b = (np.array(part.astype(mx.float32)) for part in parts[-2:])
        return float(np.sqrt(((q * s + b - exact) ** 2).mean()))

    block = [mx.array(np.zeros((64, 16), np.uint32)), mx.array(scales), mx.array(biases)]
    plain = [part.astype(mx.bfloat16) for part in block[1:]]
    assert mean_error(_round_scales(block, mx.bfloat16, 4)) < 0.8 * mean_error(plain)
    held = [block[0], *(part.astype(mx.float16).astype(mx.float32) for part in block[1:])]
    again = _round_scales(held, mx.float16, 4)
    assert mx.array_equal(again[1].astype(mx.float32), held[1])
    assert mx.array_equal(again[2].astype(mx.float32), held[2])
