"""Every release's architecture, from its config.json to its published number of parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.weights import num_parameters, tensor_shapes
from mlx_qwen3.releases import find

# layers, hidden, heads, KV heads, intermediate, tied
DENSE = {
    "Qwen3-0.6B": (28, 1024, 16, 8, 3072, True),
    "Qwen3-1.7B": (28, 2048, 16, 8, 6144, True),
    "Qwen3-4B": (36, 2560, 32, 8, 9728, True),
    "Qwen3-8B": (36, 4096, 32, 8, 12288, False),
    "Qwen3-14B": (40, 5120, 40, 8, 17408, False),
    "Qwen3-32B": (64, 5120, 64, 8, 25600, False),
}
# layers, hidden, heads, KV heads, intermediate (of dense layers, of which there are none), expert
MIXTURES = {
    "Qwen3-30B-A3B": (48, 2048, 32, 4, 6144, 768),
    "Qwen3-235B-A22B": (94, 4096, 64, 4, 12288, 1536),
}
# The releases of July 2025: the same shapes, a longer context and another RoPE base.
THETA_2507 = {"Qwen3-4B": 5_000_000, "Qwen3-30B-A3B": 10_000_000, "Qwen3-235B-A22B": 5_000_000}

# As the model cards say, in billions: all, without the embeddings, per token.
PUBLISHED = {
    "Qwen3-0.6B": (0.6, 0.44, 0.6),
    "Qwen3-1.7B": (1.7, 1.4, 1.7),
    "Qwen3-4B": (4.0, 3.6, 4.0),
    "Qwen3-8B": (8.2, 6.95, 8.2),
    "Qwen3-14B": (14.8, 13.2, 14.8),
    "Qwen3-32B": (32.8, 31.2, 32.8),
    "Qwen3-30B-A3B": (30.5, 29.9, 3.3),
    "Qwen3-235B-A22B": (235, 234, 22),
}


def dense_config(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "model_type": "qwen3",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }


def mixture_config(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, expert: int
) -> dict[str, Any]:
    return dense_config(layers, hidden, heads, kv_heads, intermediate, False) | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": expert,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


CONFIGS: dict[str, dict[str, Any]] = {name: dense_config(*row) for name, row in DENSE.items()}
CONFIGS |= {name: mixture_config(*row) for name, row in MIXTURES.items()}
CONFIGS |= {
    f"{name}-{kind}-2507": CONFIGS[name] | {"max_position_embeddings": 262144, "rope_theta": theta}
    for name, theta in THETA_2507.items()
    for kind in ("Instruct", "Thinking")
}


def published_name(name: str) -> str:
    return name.removesuffix("-2507").removesuffix("-Instruct").removesuffix("-Thinking")


def count(config: dict[str, Any], experts: int) -> int:
    """By hand: the parameters of a token's way through `experts` experts per layer."""
    hidden = config["hidden_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    attention = hidden * (queries + 2 * keys) + queries * hidden + 2 * config["head_dim"]
    if config["model_type"] == "qwen3_moe":
        router = hidden * config["num_experts"]
        mlp = router + experts * 3 * hidden * config["moe_intermediate_size"]
    else:
        mlp = 3 * hidden * config["intermediate_size"]
    return config["num_hidden_layers"] * (attention + mlp + 2 * hidden) + hidden


def embeddings(config: dict[str, Any]) -> int:
    tables = 1 if config["tie_word_embeddings"] else 2
    return int(tables * config["vocab_size"] * config["hidden_size"])


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_counted_exactly(name: str) -> None:
    config = CONFIGS[name]
    expected = count(config, config.get("num_experts", 0)) + embeddings(config)
    assert num_parameters(ModelConfig.from_dict(config)) == expected


def test_the_smallest_release_has_596_049_920_parameters() -> None:
    assert num_parameters(ModelConfig.from_dict(CONFIGS["Qwen3-0.6B"])) == 596_049_920


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model_card(name: str) -> None:
    config = ModelConfig.from_dict(CONFIGS[name])
    total = num_parameters(config)
    unused = config.num_experts - config.num_experts_per_tok
    one = 3 * config.hidden_size * config.moe_intermediate_size
    active = total - config.num_hidden_layers * unused * one
    inner = total - embeddings(CONFIGS[name])
    published = PUBLISHED[published_name(name)]
    assert [total / 1e9, inner / 1e9, active / 1e9] == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_has_its_tensors(name: str) -> None:
    config = ModelConfig.from_dict(CONFIGS[name])
    names = list(tensor_shapes(config))
    per_layer = 8 + (1 + 3 * config.num_experts if config.num_experts else 3)
    assert len(names) == len(set(names))
    tables = 1 if config.tie_word_embeddings else 2
    assert len(names) == config.num_hidden_layers * per_layer + 1 + tables
    assert ("lm_head.weight" in names) is not config.tie_word_embeddings


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_of_releases_agrees(name: str) -> None:
    release = find(name).release
    config = ModelConfig.from_dict(CONFIGS[name])
    assert release.architecture.parameters == num_parameters(config)
    assert release.max_position_embeddings == config.max_position_embeddings
    assert release.rope_theta == config.rope_parameters.rope_theta
    for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"):
        assert getattr(release.architecture, key) == getattr(config, key)


def test_the_2507_releases_keep_their_context_and_base() -> None:
    config = ModelConfig.from_dict(CONFIGS["Qwen3-30B-A3B-Thinking-2507"])
    assert config.max_position_embeddings == 262144
    assert config.rope_parameters.rope_theta == 10_000_000


COUNT_ALL = """
import json, sys
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.weights import num_parameters
from tests.model.peak import peak_resident

configs = json.load(sys.stdin)
before = peak_resident()
total = sum(num_parameters(ModelConfig.from_dict(config)) for config in configs)
print(json.dumps({"total": total, "grown": peak_resident() - before}))
"""


def test_counting_allocates_no_weights() -> None:
    """Fourteen models of 0.6 to 235 billion parameters, in the memory of their names."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_ALL],
        input=json.dumps(list(CONFIGS.values())),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    result = json.loads(done.stdout)
    assert result["total"] > 800e9
    assert result["grown"] < 128e6
