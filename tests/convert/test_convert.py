"""Conversions from start to end: the same bytes as mlx-lm, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3 import load
from mlx_qwen3.errors import OptionError, Qwen3Error, WeightsError
from mlx_qwen3.model.checkpoint import read_header
from mlx_qwen3.model.weights import load_model
from mlx_qwen3_convert import writer
from mlx_qwen3_convert.job import Options, Result, convert
from mlx_qwen3_convert.writer import Layout
from tests.checkpoints import make_tensors, write_checkpoint, write_weights
from tests.model.tiny_models import MEDIUM, TINY_MODELS

ROOT = Path(__file__).parents[2]
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "head_dim": 32,
    "torch_dtype": "bfloat16",
}
CONFIGS = {
    "dense": TINY_MODELS["dense"].config | SIZES,
    "tied": TINY_MODELS["dense"].config | SIZES | {"tie_word_embeddings": True},
    "moe": TINY_MODELS["moe"].config | SIZES,
}
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("sources")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = write_checkpoint(root / name, CONFIGS[name], 1, dtype="bfloat16")
        return made[name]

    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in folder.glob("*.safetensors"):
        found.update(mx.load(str(file)))
    return found


def same(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(mx.array_equal(a, b).item())


def logits(folder: Path) -> np.ndarray[Any, Any]:
    return np.array(load_model(folder, dtype="float32")([list(MEDIUM.encode())]))


@pytest.mark.parametrize("mode", ["4bit", "8bit", "mxfp4", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_recipe_writes_what_mlx_lm_writes(
    name: str, mode: str, sources: Folders, tmp_path: Path
) -> None:
    """Tensor for tensor, bit for bit; and each loads what the other wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlx_lm
        from mlx_lm.utils import load_model as load_with_mlx_lm
    options: dict[str, dict[str, Any]] = {
        "4bit": {"quantize": True},
        "8bit": {"quantize": True, "q_bits": 8},
        "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
        "bf16": {},
    }
    mlx_lm.convert(str(sources(name)), str(tmp_path / "theirs"), **options[mode])
    convert(sources(name), tmp_path / "ours", Options(recipe=mode))
    ours, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    assert [key for key in ours if not same(ours[key], theirs[key])] == []
    model, config = load_with_mlx_lm(tmp_path / "ours")
    assert config["torch_dtype"] == "bfloat16"
    if (name, mode) != ("moe", "bf16"):  # MLX's CPU backend multiplies experts in float32 only
        expected = load_with_mlx_lm(tmp_path / "theirs")[0](mx.array([[1, 2, 3]]))
        assert mx.array_equal(model(mx.array([[1, 2, 3]])), expected)
    assert np.array_equal(logits(tmp_path / "ours"), logits(tmp_path / "theirs"))


def test_the_default_is_4_bits_in_groups_of_64(sources: Folders, tmp_path: Path) -> None:
    result = convert(sources("moe"), tmp_path / "out")
    assert result.recipe == "4bit"
    assert result.bits_per_weight == pytest.approx(4.6, abs=0.2)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["group_size"] == 64
    router = config["quantization"]["model.layers.0.mlp.gate"]
    assert router == {"bits": 8, "group_size": 64, "mode": "affine"}


def test_everything_is_carried_over(sources: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(sources("dense"), tmp_path / "source")
    (source / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004")
    convert(source, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    before = json.loads((source / "generation_config.json").read_text())
    after = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert set(after["eos_token_id"]) >= set(before["eos_token_id"])
    card = (tmp_path / "out/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "4bit" in card
    assert load(tmp_path / "out").generate("hi", max_tokens=3, seed=1).token_ids


def test_the_same_input_gives_the_same_bytes(sources: Folders, tmp_path: Path) -> None:
    convert(sources("moe"), tmp_path / "a")
    convert(sources("moe"), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


KILLED = """
import os, signal, sys
from mlx_qwen3_convert.job import convert
def progress(done, total):
    if done > total * float(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], progress=progress)
"""


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_killed_run_is_resumed_to_the_same_bytes(
    name: str, sources: Folders, tmp_path: Path
) -> None:
    whole = convert(sources(name), tmp_path / "whole")
    for share in (0.0, 0.3, 0.8):
        command = [sys.executable, "-c", KILLED, sources(name), tmp_path / "out", str(share)]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "out").exists()
    result = convert(sources(name), tmp_path / "out")
    assert result.resumed_bytes >= 0.8 * whole.nbytes
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def interrupted(source: Path, out: Path, share: float = 0.5) -> None:
    def progress(done: int, total: int) -> None:
        if done > total * share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, progress=progress)


def test_bytes_that_changed_since_are_written_again(sources: Folders, tmp_path: Path) -> None:
    """A machine that lost power may have the journal and not the data."""
    convert(sources("dense"), tmp_path / "whole")
    interrupted(sources("dense"), tmp_path / "out")
    file = tmp_path / "out.partial/model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 4)
        stream.write(bytes(64))
    convert(sources("dense"), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_line_cut_off_in_the_journal_is_no_harm(sources: Folders, tmp_path: Path) -> None:
    convert(sources("dense"), tmp_path / "whole")
    interrupted(sources("dense"), tmp_path / "out")
    journal = tmp_path / "out.partial/journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    interrupted(sources("dense"), tmp_path / "out", share=0.7)
    result = convert(sources("dense"), tmp_path / "out")
    assert result.resumed_bytes > 0.6 * result.nbytes
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_options_start_afresh(sources: Folders, tmp_path: Path) -> None:
    interrupted(sources("dense"), tmp_path / "out")
    result = convert(sources("dense"), tmp_path / "out", Options(recipe="8bit"))
    assert result.resumed_bytes == 0
    convert(sources("dense"), tmp_path / "whole", Options(recipe="8bit"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_existing_folder_is_kept_unless_replaced(sources: Folders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(OptionError, match="--overwrite"):
        convert(sources("dense"), out)
    assert contents(out) == {"mine": b"precious"}
    convert(sources("dense"), out, Options(overwrite=True))
    assert "mine" not in contents(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "link", "link to nothing"])
def test_what_is_no_folder_is_replaced_too_and_leaves_nothing(
    kind: str, sources: Folders, tmp_path: Path
) -> None:
    out, other = tmp_path / "made/out", tmp_path / "other"
    out.parent.mkdir()
    if kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(other)
    if kind == "link":
        other.mkdir()
    with pytest.raises(OptionError, match="--overwrite"):
        convert(sources("dense"), out)
    convert(sources("dense"), out, Options(overwrite=True))
    assert out.is_dir()
    assert not out.is_symlink()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert other.exists() == (kind == "link")


@pytest.mark.parametrize("name", [".", "..", "source", "source/.."])
def test_what_must_not_be_replaced(
    name: str, sources: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source itself, a folder it lies in, or one without a name."""
    source = shutil.copytree(sources("dense"), tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    before = contents(source)
    with pytest.raises(OptionError) as caught:
        convert("source", name, Options(overwrite=True))
    assert "\n" not in str(caught.value)
    assert contents(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_place_that_cannot_be_written_is_one_line(sources: Folders, tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out.partial/deeper"):
        with pytest.raises(Qwen3Error, match="cannot be used"):
            convert(sources("dense"), out)
    assert (tmp_path / "out.partial").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_kills_at_random_moments(overwrite: bool, sources: Folders, tmp_path: Path) -> None:
    whole = contents(convert(sources("moe"), tmp_path / "whole").folder)
    out, moments = tmp_path / "out", random.Random(11)
    old = {"mine": b"precious"} if overwrite else {}
    if overwrite:
        out.mkdir()
        (out / "mine").write_bytes(old["mine"])
    command = [sys.executable, "-m", "mlx_qwen3_convert", sources("moe"), "--out", out]
    command += ["--overwrite"] if overwrite else []
    for _ in range(8):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.3, 2))
        process.kill()
        if process.wait() == 0:
            break
        assert not out.exists() or contents(out) in (old, whole)
    if not out.exists() or overwrite:
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert contents(out) == whole
    assert not list(tmp_path.glob("out.*"))


def test_two_at_once_do_not_mix(sources: Folders, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == total:
            with pytest.raises(Qwen3Error, match="another conversion"):
                convert(sources("dense"), tmp_path / "out")

    convert(sources("dense"), tmp_path / "out", progress=progress)
    assert load_model(tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", CONFIGS["dense"], 1)
    weights = make_tensors(CONFIGS["dense"], 1)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    write_weights(source, weights)
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_shard_is_named(sources: Folders, tmp_path: Path) -> None:
    source = shutil.copytree(sources("dense"), tmp_path / "source")
    file = source / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 10)
    with pytest.raises(WeightsError, match="cut short"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_is_one_line_and_can_go_on(
    sources: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(sources("dense"), tmp_path / "whole")
    calls = 0

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwrite(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "os", _With(os, pwrite=pwrite))
        with pytest.raises(Qwen3Error, match="disk is full"):
            convert(sources("dense"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert convert(sources("dense"), tmp_path / "out").resumed_bytes > 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class _With:
    """A module with some names replaced."""

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def test_too_small_a_disk_is_refused_before_work(
    sources: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Qwen3Error, match="GB needed"):
        convert(sources("dense"), tmp_path / "out")


def test_shards_have_an_index_that_both_load(
    sources: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(sources("dense"), tmp_path / "one")
    monkeypatch.setattr("mlx_qwen3_convert.job.Layout", lambda plan: Layout(plan, 50_000))
    convert(sources("dense"), tmp_path / "many")
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert np.array_equal(logits(tmp_path / "one"), logits(tmp_path / "many"))
    for file in files:
        assert read_header(tmp_path / "many" / file)


def formats(result: Result) -> dict[str, object]:
    return {str(module["name"]): module["to"] for module in result.modules}


def test_rules_of_the_command_line_win(sources: Folders, tmp_path: Path) -> None:
    options = Options(recipe="4bit", rules={"layers.*.mlp.down_proj": "6", "lm_head": "8g32"})
    stored = formats(convert(sources("dense"), tmp_path / "out", options))
    assert stored["model.layers.1.mlp.down_proj.weight"] == "6g64"
    assert stored["lm_head.weight"] == "8g32"
    assert stored["model.layers.1.mlp.up_proj.weight"] == "4g64"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization"]["lm_head"] == {"bits": 8, "group_size": 32, "mode": "affine"}
    assert load_model(tmp_path / "out")


def test_a_recipe_may_be_a_file(sources: Folders, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"default": "float", "rules": {"*.self_attn.*": "8"}}')
    stored = formats(convert(sources("dense"), tmp_path / "out", Options(recipe=str(file))))
    assert stored["model.layers.0.self_attn.q_proj.weight"] == "8g64"
    assert stored["model.embed_tokens.weight"] == "BF16"


WRONG: list[tuple[Options, str]] = [
    (Options(recipe="5.5bit"), "5.5bit"),
    (Options(recipe="4bit", bits=4), "exclude each other"),
    (Options(bits=7), "bits is 7"),
    (Options(bits=4, group_size=48), "group size is 48"),
    (Options(mode="nf4"), "nf4"),
    (Options(mode="mxfp4", bits=8), "mxfp4 has bits 4"),
    (Options(dtype="int8"), "int8"),
    (Options(rules={"*.nope": "4"}), r"\*\.nope"),
    (Options(rules={"*.down_proj": "big"}), "big"),
    (Options(rules={"*.v_proj": "6"}), "multiplied together"),
]


@pytest.mark.parametrize(("options", "word"), WRONG, ids=[word for _, word in WRONG])
def test_what_cannot_be_is_refused_before_work(
    options: Options, word: str, sources: Folders, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=word) as caught:
        convert(sources("dense"), tmp_path / "out", options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_float32_scales_on_request(sources: Folders, tmp_path: Path) -> None:
    convert(sources("dense"), tmp_path / "out", Options(dtype="float32"))
    assert tensors(tmp_path / "out")["lm_head.scales"].dtype == mx.float32


def test_the_command_line(sources: Folders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mlx_qwen3_convert", sources("dense"), "--out", out]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["folder"] == str(out)
    assert said["actions"]["quantized"] > 10
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "--overwrite" in again.stderr


@pytest.mark.parametrize(
    "options", [["--calibration", "text.txt"], ["--auto", "4.5", "--learned", "gptq"]]
)
def test_options_that_would_be_ignored_are_refused(
    options: list[str], sources: Folders, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mlx_qwen3_convert", sources("dense"), "--out", tmp_path / "o"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
