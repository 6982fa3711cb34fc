"""The JSON files of the output: what the source said, in the spelling every reader knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_qwen3.model.config import ModelConfig, token_ids
from mlx_qwen3_convert.plan import Plan
from mlx_qwen3_convert.readers.base import Source

# Keys that describe the source's storage, or the machine that wrote it.
_DROPPED = ("quantization", "quantization_config", "_name_or_path", "dtype", "rope_parameters")
# What mlx-lm needs at the top level and transformers 5 no longer writes.
_SPELLED_OUT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)
_SPELLED_OUT_SPARSE = (
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "decoder_sparse_step",
    "norm_topk_prob",
)


def output_config(source: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """config.json of the output, keys sorted."""
    parsed = ModelConfig.from_dict(source)
    config = {key: value for key, value in source.items() if key not in _DROPPED}
    config |= {key: getattr(parsed, key) for key in _SPELLED_OUT}
    if parsed.num_experts:
        config |= {key: getattr(parsed, key) for key in _SPELLED_OUT_SPARSE}
        config["mlp_only_layers"] = list(parsed.mlp_only_layers)
    config |= {"rope_theta": parsed.rope_parameters.rope_theta, "torch_dtype": plan.dtype}
    config["rope_scaling"] = _rope_scaling(source)
    quantization = plan.quantization()
    if quantization is not None:
        config |= {"quantization": quantization, "quantization_config": quantization}
    return dict(sorted(config.items()))


def _rope_scaling(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """In transformers 4's place: None for a plain RoPE."""
    raw = dict(source.get("rope_scaling") or source.get("rope_parameters") or {})
    raw = dict(raw.get("full_attention", raw))
    raw.pop("rope_theta", None)
    kind = raw.get("rope_type", raw.get("type", "default"))
    return None if kind == "default" else {**raw, "rope_type": kind}


def output_generation_config(source: Source) -> dict[str, Any] | None:
    """generation_config.json with every end token that either file names."""
    own = dict(source.generation_config or {})
    named = token_ids(own.get("eos_token_id"))
    more = token_ids(source.config.get("eos_token_id"))
    united = [*named, *(one for one in more if one not in named)]
    if not own and not united:
        return None
    return {**own, "eos_token_id": united[0] if len(united) == 1 else united} if united else own
