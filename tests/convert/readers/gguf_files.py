"""Tiny GGUF files, written with the gguf package as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import Config, is_sparse, make_tensors, num_experts, write_tokenizer
from tests.convert.readers import k_quants

Array = NDArray[Any]
_K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# What a row that is no multiple of 256 is stored as instead, as llama.cpp does.
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9,
               "Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "BF16": 32}  # fmt: skip
_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.switch_mlp.gate_proj": "ffn_gate_exps",
    "mlp.switch_mlp.up_proj": "ffn_up_exps",
    "mlp.switch_mlp.down_proj": "ffn_down_exps",
}


def write_gguf(
    folder: Path,
    config: Config,
    seed: int = 0,
    *,
    type: str = "Q4_K",
    types: Mapping[str, str] | None = None,
    parts: int = 1,
    tokenizer: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """model.gguf in a folder, or its first part; return that file.

    type: of every matrix; types: of those whose GGUF name starts with a key instead. Routers and
    norms stay F32. tokenizer: a folder whose tokenizer goes in; None: the tiny one.
    metadata: more keys, or other values for them (bool, int, float or str).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = make_tensors(config, seed, "mlx")
    writer = gguf.GGUFWriter(
        folder / "model.gguf",
        _architecture(config),
        split_max_tensors=0 if parts == 1 else -(-len(tensors) // parts),
    )
    _add_metadata(writer, config, type, metadata or {})
    _add_tokenizer(writer, tokenizer or write_tokenizer(folder), int(config["vocab_size"]))
    for name, values in tensors.items():
        published, kind = gguf_name(name), type
        for start, other in (types or {}).items():
            kind = other if published.startswith(start) else kind
        _add_tensor(writer, published, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if tokenizer is None:  # a .gguf has it inside
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    return next(iter(sorted(folder.glob("*.gguf"))))


def gguf_name(name: str) -> str:
    """llama.cpp's name for a tensor."""
    prefix, _, kind = name.rpartition(".")
    if prefix in _OUTER:
        return f"{_OUTER[prefix]}.{kind}"
    _, _, layer, inner = prefix.split(".", 3)
    return f"blk.{layer}.{_INNER[inner]}.{kind}"


def encode(values: Array, kind: str) -> Array:
    """Float32 to a ggml type: bytes, or floats where the package wants those."""
    if kind in _K_QUANTS:
        return k_quants.quantize(values, kind)
    packed: Array = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return packed


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: Array, kind: str) -> None:
    if values.ndim == 1 or "ffn_gate_inp" in name:
        kind = "F32"
    if kind in _K_QUANTS and values.shape[-1] % 256:
        kind = _FALLBACK[kind]
    raw = values if kind == "F32" else encode(values, kind)
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])


def _architecture(config: Config) -> str:
    return {"qwen3": "qwen3", "qwen3_moe": "qwen3moe"}[config["model_type"]]


def _add_metadata(
    writer: gguf.GGUFWriter, config: Config, kind: str, more: Mapping[str, Any]
) -> None:
    writer.add_name("Tiny")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config["rope_theta"]))
    if is_sparse(config, 0):
        writer.add_expert_count(num_experts(config))
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    scaling = config.get("rope_scaling")
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in more.items():
        adders.get(value.__class__, writer.add_string)(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        content = added["content"]
        special = added["special"] or (content.startswith("<|") and content.endswith("|>"))
        tokens[added["id"]] = content
        types[added["id"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    if merges:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index(settings["eos_token"]))
    writer.add_pad_token_id(tokens.index(settings["pad_token"]))
    writer.add_bos_token_id(tokens.index(settings["pad_token"]))
    writer.add_add_bos_token(False)
    writer.add_chat_template(settings["chat_template"])


def read_gguf(file: Path) -> dict[str, Array]:
    """Every tensor of a file dequantized by the gguf package, by its GGUF name."""
    reader = gguf.GGUFReader(file)
    return {
        tensor.name: np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).reshape(
            tuple(int(size) for size in reversed(tensor.shape))
        )
        for tensor in reader.tensors
    }
