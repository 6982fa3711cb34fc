"""The tiny models of the reference tests, as data: one per way a config.json can differ.

Each is small enough to run in a second and odd enough that taking one field for another
moves its logits. Seeds are chosen so that no greedy step is a near tie (make_references.py
refuses one that is).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.checkpoints import Dtype

SHORT = "Hello"  # 5 tokens: one per byte
MEDIUM = "The quick brown fox jumps over the lazy dog. 狐狸"  # 51 tokens
# Longer than every original_max_position_embeddings and sliding_window below.
LONG = "Chapter 1. It was a bright cold day in April, and the clocks were striking 13: é, ñ, 你好!"


@dataclass(frozen=True)
class TinyModel:
    """A config.json, the seed of its weights, and the texts that are run through it."""

    config: dict[str, Any]
    prompts: tuple[str, ...] = (SHORT, MEDIUM)
    seed: int = 0
    dtype: Dtype = "float32"  # of the file; every test computes in float32


_DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "max_window_layers": 3,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 288,  # more rows than the tokenizer has tokens, as in the releases
}

_MOE: dict[str, Any] = _DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}

_ABSENT = object()


def _dense(**changes: Any) -> dict[str, Any]:
    return _changed(_DENSE, changes)


def _moe(**changes: Any) -> dict[str, Any]:
    return _changed(_MOE, changes)


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in (base | changes).items() if v is not _ABSENT}


# transformers 5 writes neither rope_theta, rope_scaling nor torch_dtype at the top.
_V5 = {
    "rope_theta": _ABSENT,
    "rope_scaling": _ABSENT,
    "torch_dtype": _ABSENT,
    "dtype": "float32",
    "pad_token_id": None,
    "transformers_version": "5.23.0",
}
_V5_MOE = _V5 | {"num_experts": _ABSENT, "max_window_layers": _ABSENT, "num_local_experts": 8}

# A small base and wide heads, so that YaRN's ramp spans several frequencies.
_ROPE = {"rope_theta": 1000.0, "head_dim": 32, "max_position_embeddings": 128}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

_MODELS: dict[str, TinyModel] = {
    # Shapes
    "dense": TinyModel(_dense()),
    "tied": TinyModel(_dense(tie_word_embeddings=True, num_attention_heads=8)),
    "gqa-1": TinyModel(
        _dense(hidden_size=96, num_attention_heads=3, num_key_value_heads=3, head_dim=32)
    ),
    "gqa-8": TinyModel(_dense(num_attention_heads=8, num_key_value_heads=1, head_dim=24)),
    "heads-wider-than-hidden": TinyModel(_dense(head_dim=64, num_hidden_layers=2)),
    "head-dim-absent": TinyModel(_dense(head_dim=_ABSENT, num_hidden_layers=2)),
    "attention-bias": TinyModel(_dense(attention_bias=True)),
    "bfloat16-file": TinyModel(_dense(torch_dtype="bfloat16"), dtype="bfloat16"),
    "float16-file": TinyModel(_dense(torch_dtype="float16"), dtype="float16"),
    # Activations and norms
    "gelu": TinyModel(_dense(hidden_act="gelu")),
    "rms-norm-eps": TinyModel(_dense(rms_norm_eps=0.05)),
    # RoPE
    "rope-theta-absent": TinyModel(_dense(rope_theta=_ABSENT, rope_scaling=_ABSENT)),
    "rope-parameters": TinyModel(
        _dense(**_V5, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    ),
    "yarn": TinyModel(_dense(**_ROPE, rope_scaling=_YARN), prompts=(SHORT, LONG)),
    "yarn-type-key": TinyModel(  # the older spelling; the original length is the trained one
        _dense(
            **_ROPE | {"max_position_embeddings": 40}, rope_scaling={"type": "yarn", "factor": 2.0}
        ),
        prompts=(SHORT, LONG),
    ),
    "yarn-parameters": TinyModel(
        _dense(**_ROPE | _V5, rope_parameters=_YARN | {"rope_theta": 300.0}),
        prompts=(SHORT, LONG),
    ),
    "yarn-attention-factor": TinyModel(
        _dense(
            **_ROPE,
            rope_scaling=_YARN | {"attention_factor": 1.4, "beta_fast": 4.0, "beta_slow": 0.5},
        ),
        prompts=(SHORT, LONG),
    ),
    "yarn-no-truncate": TinyModel(
        _dense(
            **_ROPE,
            rope_scaling=_YARN | {"truncate": False, "mscale": 1.5, "mscale_all_dim": 0.7},
        ),
        prompts=(SHORT, LONG),
    ),
    "yarn-moe": TinyModel(_moe(**_ROPE, rope_scaling=_YARN), prompts=(SHORT, LONG)),
    "linear": TinyModel(
        _dense(**_ROPE, rope_scaling={"rope_type": "linear", "factor": 3.0}),
        prompts=(SHORT, LONG),
    ),
    "llama3": TinyModel(
        _dense(
            **_ROPE,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        prompts=(SHORT, LONG),
    ),
    "rope-scaling-added": TinyModel(  # YaRN written into a version 5 config, as READMEs advise
        _dense(
            **_ROPE | {"rope_theta": _ABSENT},
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            rope_scaling=_YARN | {"rope_theta": 1000.0},
        ),
        prompts=(SHORT, LONG),
    ),
    # Mixtures of experts
    "moe": TinyModel(_moe()),
    "moe-unnormalised": TinyModel(_moe(norm_topk_prob=False, tie_word_embeddings=True)),
    "moe-defaults": TinyModel(  # norm_topk_prob false, head_dim hidden / heads, every layer sparse
        _moe(
            norm_topk_prob=_ABSENT,
            head_dim=_ABSENT,
            decoder_sparse_step=_ABSENT,
            mlp_only_layers=_ABSENT,
        )
    ),
    "moe-parameters": TinyModel(
        _moe(**_V5_MOE, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    ),
    "moe-some-dense": TinyModel(
        _moe(num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3])
    ),
    "moe-gelu-tanh": TinyModel(
        _moe(hidden_act="gelu_pytorch_tanh", attention_bias=True, num_experts_per_tok=1)
    ),
    # Sliding windows
    "sliding": TinyModel(
        _dense(use_sliding_window=True, sliding_window=8, max_window_layers=1),
        prompts=(SHORT, LONG),
    ),
    "sliding-off": TinyModel(  # a window that is set, and switched off
        _dense(use_sliding_window=False, sliding_window=8, max_window_layers=0)
    ),
    "sliding-moe": TinyModel(  # in the reference, every layer of a mixture slides
        _moe(use_sliding_window=True, sliding_window=8, max_window_layers=2),
        prompts=(SHORT, LONG),
    ),
    "layer-types": TinyModel(
        _dense(
            **_V5,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            use_sliding_window=True,
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        prompts=(SHORT, LONG),
    ),
}

# The others' seed is 0.
_SEEDS = {
    "tied": 6,
    "gqa-1": 2,
    "gqa-8": 1,
    "heads-wider-than-hidden": 4,
    "head-dim-absent": 4,
    "attention-bias": 3,
    "bfloat16-file": 4,
    "rms-norm-eps": 2,
    "rope-parameters": 1,
    "yarn": 2,
    "yarn-attention-factor": 2,
    "linear": 1,
    "llama3": 2,
    "rope-scaling-added": 2,
    "moe": 3,
    "moe-unnormalised": 10,
    "moe-defaults": 4,
    "moe-some-dense": 3,
    "moe-gelu-tanh": 2,
    "sliding-moe": 2,
}

TINY_MODELS = {name: replace(model, seed=_SEEDS.get(name, 0)) for name, model in _MODELS.items()}
