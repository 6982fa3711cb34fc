"""config.json: the defaults of the reference, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.errors import ConfigError
from mlx_qwen3.model.config import ModelConfig
from tests.checkpoints import head_dim
from tests.model.tiny_models import TINY_MODELS

DENSE = TINY_MODELS["dense"].config
MOE = TINY_MODELS["moe"].config


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_tiny_config_is_read(name: str) -> None:
    raw = TINY_MODELS[name].config
    config = ModelConfig.from_dict(raw)
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings"):
        assert getattr(config, key) == raw[key]
    assert config.head_dim == head_dim(raw)
    assert len(config.layer_types) == raw["num_hidden_layers"]


def test_a_window_switched_on_without_a_size_has_the_reference_default() -> None:
    config = ModelConfig.from_dict(
        {k: v for k, v in DENSE.items() if k != "sliding_window"}
        | {"use_sliding_window": True, "max_window_layers": 1}
    )
    assert [config.window(layer) for layer in range(3)] == [None, 4096, 4096]


def test_eos_token_ids_may_be_one_or_several() -> None:
    assert ModelConfig.from_dict(DENSE).eos_token_id == (258,)
    assert ModelConfig.from_dict(DENSE | {"eos_token_id": [258, 256]}).eos_token_id == (258, 256)
    assert ModelConfig.from_dict(DENSE | {"eos_token_id": None}).eos_token_id == ()


def test_unknown_keys_are_left_alone() -> None:
    added = DENSE | {"_name_or_path": "x", "quantize_activations": False, "some_future_key": [1]}
    assert ModelConfig.from_dict(added) == ModelConfig.from_dict(DENSE)


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    (DENSE | {"model_type": "llama"}, "llama"),
    (DENSE | {"model_type": None}, "model_type"),
    (DENSE | {"hidden_size": 0}, "hidden_size"),
    (DENSE | {"hidden_size": "64"}, "hidden_size"),
    (DENSE | {"hidden_size": 64.0}, "hidden_size"),
    (DENSE | {"vocab_size": None}, "vocab_size"),
    (DENSE | {"num_hidden_layers": -1}, "num_hidden_layers"),
    (DENSE | {"num_attention_heads": 0}, "num_attention_heads"),
    (DENSE | {"num_key_value_heads": 3}, "num_key_value_heads"),
    (DENSE | {"head_dim": 15}, "head_dim"),
    (DENSE | {"hidden_act": "mish"}, "mish"),
    (DENSE | {"rms_norm_eps": "small"}, "rms_norm_eps"),
    (DENSE | {"rms_norm_eps": -1.0}, "rms_norm_eps"),
    (DENSE | {"rope_theta": 0}, "rope_theta"),
    (DENSE | {"rope_theta": "big"}, "rope_theta"),
    (DENSE | {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
    (DENSE | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    (DENSE | {"rope_scaling": {"rope_type": "linear"}}, "factor"),
    (DENSE | {"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, "factor"),
    (DENSE | {"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "factor"),
    (DENSE | {"rope_scaling": "yarn"}, "rope_scaling"),
    (DENSE | {"layer_types": ["full_attention"]}, "layer_types"),
    (DENSE | {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
    (DENSE | {"layer_types": ["sliding_attention"] * 3}, "sliding_window"),
    (DENSE | {"use_sliding_window": True, "sliding_window": -8}, "sliding_window"),
    (MOE | {"num_experts_per_tok": 9}, "num_experts_per_tok"),
    (MOE | {"num_experts_per_tok": 0}, "num_experts_per_tok"),
    (MOE | {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    (MOE | {"num_experts": -1}, "num_experts"),
    (MOE | {"mlp_only_layers": 3}, "mlp_only_layers"),
]


@pytest.mark.parametrize(("config", "key"), IMPOSSIBLE, ids=[key for _, key in IMPOSSIBLE])
def test_what_no_qwen3_could_be_is_refused(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        ModelConfig.from_dict(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "model_type"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_dict({k: v for k, v in DENSE.items() if k != key})


UNREADABLE = {
    "empty": b"",
    "cut short": b'{"model_type": "qwen3", ',
    "a list": b"[1, 2]",
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        ModelConfig.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found") as caught:
        ModelConfig.from_folder(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.reference
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", TINY_MODELS)
def test_transformers_reads_the_same(name: str, tmp_path: Path) -> None:
    """Its config classes need no torch."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(TINY_MODELS[name].config))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    ours = ModelConfig.from_folder(tmp_path)
    shared = set(theirs.to_dict()) & set(ModelConfig.__dataclass_fields__)
    for key in shared - {"layer_types", "eos_token_id", "rope_parameters", "torch_dtype"}:
        expected = getattr(theirs, key)
        assert getattr(ours, key) == (tuple(expected) if isinstance(expected, list) else expected)
    if ours.model_type == "qwen3":
        assert list(ours.layer_types) == theirs.layer_types
    assert ours.rope_parameters.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope_parameters.rope_type == theirs.rope_parameters["rope_type"]
