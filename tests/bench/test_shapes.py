"""Random checkpoints: the shapes of the releases, and models that load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from mlx_qwen3.bench.shapes import BITS, shape_config, stored_tensors, write_checkpoint
from mlx_qwen3.bench.subject import Shape, random_subject
from mlx_qwen3.errors import DeviceError, OptionError, TokenizerError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.weights import load_model, num_parameters
from mlx_qwen3.releases import find


@pytest.mark.parametrize("name", ["0.6b", "8b", "30b-a3b"])
def test_a_shape_has_the_releases_weights(name: str) -> None:
    release = find(name).release
    config = ModelConfig.from_dict(shape_config(release))
    assert num_parameters(config) == release.architecture.parameters
    assert config.context_length == release.max_position_embeddings


def test_a_narrow_shape_keeps_what_kernels_depend_on() -> None:
    config = shape_config(find("30b-a3b").release, hidden=64, layers=3, vocab=500)
    assert config["hidden_size"] == 64
    assert config["num_hidden_layers"] == 3
    assert config["vocab_size"] == 500
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 1)
    assert (config["head_dim"], config["num_experts"]) == (128, 128)
    assert config["moe_intermediate_size"] == 64


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["0.6b", "30b-a3b"])
def test_what_was_written_loads_and_computes(name: str, bits: int, tmp_path: Path) -> None:
    config = small(name)
    model = load_model(write_checkpoint(config, bits, tmp_path), dtype="float32")
    logits = model([[1, 2, 3]])
    assert logits.shape == (1, 3, 300)
    assert 0.3 < mx.std(logits).item() < 3  # projections of about unit gain, not noise or zeros


@pytest.mark.parametrize("bits", [4, 16])
def test_tokens_are_routed_apart(bits: int, tmp_path: Path) -> None:
    """As those of a model are: streamed experts and caches are measured with such shapes."""
    config = small("30b-a3b") | {"num_hidden_layers": 6}
    model = load_model(write_checkpoint(config, bits, tmp_path), dtype="float32")
    hidden = model.hidden_states([list(range(40))])[0]
    unit = hidden / mx.linalg.norm(hidden, axis=-1, keepdims=True)
    alike = (mx.sum(unit @ unit.T).item() - 40) / (40 * 39)
    assert abs(alike) < 0.2


def test_the_published_layout_has_experts_one_by_one(tmp_path: Path) -> None:
    config = small("30b-a3b")
    names = {one.name for one in stored_tensors(config, 16, published=True)}
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in names
    load_model(write_checkpoint(config, 16, tmp_path, published=True), dtype="float32")
    with pytest.raises(OptionError, match="published layout"):
        stored_tensors(config, 4, published=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: shape_config(find("0.6b").release, hidden=65), "hidden is 65"),
        (lambda: stored_tensors(small("0.6b"), 7), "bits is 7"),
        (lambda: Shape("0.6b", bits=0).check(), "bits is 0"),
    ],
)
def test_impossible_shapes_are_refused(wrong: Callable[[], object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        wrong()


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1))
    with pytest.raises(DeviceError, match="set TMPDIR"):
        write_checkpoint(small("0.6b"), 4, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_random_weights_are_gone_afterwards(checkpoint: Path) -> None:
    shape = Shape("0.6b", 4, layers=1, hidden=64, vocab=300)
    with random_subject(shape, tokenizer=checkpoint) as subject:
        assert subject.label == "0.6b shape, 4-bit, layers 1, hidden 64, vocab 300"
        assert (subject.folder / "tokenizer.json").is_file()
        assert subject.config.vocab_size == 300
    assert not subject.folder.exists()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(TokenizerError, match=r"no tokenizer\.json"),
        random_subject(Shape("0.6b", 4, 1, 64, 300), tokenizer=tmp_path),
    ):
        pass


def small(name: str) -> dict[str, Any]:
    """Two layers, with few experts: what takes long in tests is writing."""
    config = shape_config(find(name).release, layers=2, hidden=64, vocab=300)
    if "num_experts" in config:
        config |= {"num_experts": 8, "num_experts_per_tok": 2}
    return config
