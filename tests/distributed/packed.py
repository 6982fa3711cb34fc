"""Tiny checkpoints of which a few processes can have equal parts, packed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from tests.checkpoints import (
    make_tensors,
    write_checkpoint,
    write_generation_config,
    write_tokenizer,
)
from tests.model.tiny_models import TINY_MODELS

GROUP = 32
# A quarter of every input is one group or more.
SIZES = {
    "hidden_size": 128,
    "head_dim": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 286,  # four processes have 72, 72, 72 and 70
    "num_hidden_layers": 4,  # a stage needs one
}
DENSE = TINY_MODELS["dense"].config | SIZES
del DENSE["moe_intermediate_size"], DENSE["num_experts"], DENSE["num_experts_per_tok"]
MOE = TINY_MODELS["moe"].config | SIZES
FEW_KV_HEADS = DENSE | {"num_key_value_heads": 1, "attention_bias": True}
TIED = DENSE | {"tie_word_embeddings": True}
# Name -> config, bits (None: as they are) and layout.
MODELS: dict[str, tuple[dict[str, Any], int | None]] = {
    "dense": (DENSE, None),
    "dense-4bit": (DENSE, 4),
    "tied-8bit": (TIED, 8),
    "few-kv-heads": (FEW_KV_HEADS, None),
    "moe": (MOE, None),
    "moe-4bit": (MOE, 4),
}


def write_model(folder: Path, name: str, seed: int = 0) -> Path:
    """The checkpoint of MODELS[name]."""
    config, bits = MODELS[name]
    return write_packed(folder, config, bits, seed)


def write_packed(folder: Path, config: dict[str, Any], bits: int | None, seed: int = 0) -> Path:
    """A checkpoint in MLX's layout, every matrix but the router packed in groups of GROUP."""
    if bits is None:
        return write_checkpoint(folder, config, seed)
    write_checkpoint(folder, config, seed, layout="mlx")
    tensors: dict[str, mx.array] = {}
    for tensor, values in make_tensors(config, seed, "mlx").items():
        array = mx.array(values)
        if array.ndim == 1 or ".mlp.gate." in tensor:
            tensors[tensor] = array
            continue
        prefix = tensor.removesuffix(".weight")
        packed = mx.quantize(array, group_size=GROUP, bits=bits)
        for part, one in zip(("weight", "scales", "biases"), packed, strict=True):
            tensors[f"{prefix}.{part}"] = one
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    quantization = {"group_size": GROUP, "bits": bits}
    (folder / "config.json").write_text(json.dumps(config | {"quantization": quantization}))
    write_tokenizer(folder)
    write_generation_config(folder)
    return folder
