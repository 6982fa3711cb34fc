"""config.json and generation_config.json out of a GGUF's metadata.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's
convert_hf_to_gguf.py, which wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_qwen3.errors import ConfigError

Metadata = Mapping[str, Any]

_MODEL_TYPES = {"qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}
# config.json's name: the metadata's, below the architecture's own.
_REQUIRED = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_REQUIRED_DENSE = {"intermediate_size": "feed_forward_length"}
_REQUIRED_MOE = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_ROPE_THETA = 10_000.0  # llama.cpp's own where the metadata have none
# What llama.cpp stops at beside the file's own eos: chat models have both, the file one.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>")
_CONTROL = 3  # the token type


def build_config(metadata: Metadata, *, vocab_size: int, tied: bool, bias: bool) -> dict[str, Any]:
    """What the original config.json said. Raises ConfigError naming the key that is missing.

    vocab_size, tied, bias: what only the tensors tell.
    """
    found = metadata.get("general.architecture")
    if found not in _MODEL_TYPES:
        raise ConfigError(
            f"general.architecture is {found!r}; expected one of {', '.join(_MODEL_TYPES)}"
        )
    model_type = _MODEL_TYPES[found]
    names = _REQUIRED | (_REQUIRED_MOE if model_type == "qwen3_moe" else _REQUIRED_DENSE)
    config = {key: _required(metadata, f"{found}.{name}") for key, name in names.items()}
    config |= _mixture(metadata) if model_type == "qwen3_moe" else {}
    ends = eos_token_ids(metadata)
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": vocab_size,
        **config,
        "head_dim": _head_dim(metadata, found, config),
        "hidden_act": "silu",
        "attention_bias": bias,
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "rope_theta": metadata.get(f"{found}.rope.freq_base", _ROPE_THETA),
        "rope_scaling": _rope_scaling(metadata, f"{found}.rope.scaling."),
        "torch_dtype": {0: "float32", 1: "float16"}.get(
            metadata.get("general.file_type", -1), "bfloat16"
        ),
        **_token_ids(metadata),
        **({"eos_token_id": ends[0]} if ends else {}),
    }


def build_generation_config(metadata: Metadata) -> dict[str, Any]:
    """Every token that ends a turn, and sampling settings where the file carries them."""
    ends = eos_token_ids(metadata)
    sampling = {
        key: metadata[f"general.sampling.{name}"]
        for key, name in _SAMPLING.items()
        if f"general.sampling.{name}" in metadata
    }
    return {
        **_token_ids(metadata),
        **({"eos_token_id": ends} if ends else {}),
        **({"do_sample": True} if sampling else {}),
        **sampling,
    }


def eos_token_ids(metadata: Metadata) -> list[int]:
    """Ids that end a turn, the file's own first."""
    found = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    types = metadata.get("tokenizer.ggml.token_type") or []
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    control = {tokens[i]: i for i, kind in enumerate(types[: len(tokens)]) if kind == _CONTROL}
    found += [control.get(token) for token in _END_TOKENS]
    return list(dict.fromkeys(token_id for token_id in found if token_id is not None))


def _mixture(metadata: Metadata) -> dict[str, Any]:
    """llama.cpp runs every layer of a qwen3moe as experts and always normalizes their weights."""
    dense = metadata.get("qwen3moe.feed_forward_length")
    width = _required(metadata, "qwen3moe.expert_feed_forward_length")
    return {
        "intermediate_size": dense or width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _head_dim(metadata: Metadata, architecture: str, config: Mapping[str, Any]) -> int:
    length = metadata.get(f"{architecture}.attention.key_length")
    return int(length or config["hidden_size"] // config["num_attention_heads"])


def _rope_scaling(metadata: Metadata, prefix: str) -> dict[str, Any] | None:
    kind = metadata.get(f"{prefix}type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise ConfigError(f"{prefix}type is {kind!r}; expected none, linear or yarn")
    scaling = {"rope_type": kind, "factor": _required(metadata, f"{prefix}factor")}
    if kind == "yarn":
        original = _required(metadata, f"{prefix}original_context_length")
        scaling["original_max_position_embeddings"] = original
    return scaling


def _token_ids(metadata: Metadata) -> dict[str, Any]:
    names = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}
    found = {key: metadata.get(f"tokenizer.ggml.{name}") for key, name in names.items()}
    return {key: value for key, value in found.items() if value is not None}


def _required(metadata: Metadata, key: str) -> Any:
    if key not in metadata:
        raise ConfigError(f"the GGUF metadata have no {key}; convert the original model instead")
    return metadata[key]
