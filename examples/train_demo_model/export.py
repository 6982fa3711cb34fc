"""Turn a training checkpoint into model folders.

python export.py --checkpoint runs/dense/checkpoint.pt --tokenizer runs/tokenizer.json --out DIR
writes the bfloat16 checkpoint in Hugging Face's layout; with --bits 4 (or 8) the folder that MLX
runtimes load, quantized as mlx-lm quantizes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from model import ModelConfig
from tokenizer import END_OF_TEXT, END_OF_TURN
from tokenizer import config as tokenizer_config
from tokenizers import Tokenizer

GROUP_SIZE = 64
ROUTER_BITS = 8  # as mlx-lm: a router costs little and decides much
Weights = dict[str, torch.Tensor]


def model_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json as Qwen publishes it."""
    moe = {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": config.moe_intermediate_size,
        "norm_topk_prob": True,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.num_experts_per_tok,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }
    fields = {
        "architectures": ["Qwen3MoeForCausalLM" if config.num_experts else "Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "eos_token_id": tokenizer.token_to_id(END_OF_TURN),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_hidden_layers,
        "model_type": "qwen3_moe" if config.num_experts else "qwen3",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    return dict(sorted((fields | (moe if config.num_experts else {})).items()))


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: both end tokens, and sampling as Qwen3 recommends it."""
    end_of_text, end_of_turn = map(tokenizer.token_to_id, (END_OF_TEXT, END_OF_TURN))
    return {
        "bos_token_id": end_of_text,
        "do_sample": True,
        "eos_token_id": [end_of_turn, end_of_text],
        "pad_token_id": end_of_text,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }


def hf_weights(master: Weights) -> Weights:
    """Names as in transformers: stacked experts become one matrix each."""
    out: Weights = {}
    for name, weight in master.items():
        head, found, projection = name.partition(".experts.")
        if not found:
            out[name] = weight.bfloat16()
            continue
        for index, matrix in enumerate(weight.bfloat16()):
            out[f"{head}.experts.{index}.{projection}.weight"] = matrix.clone()
    return out


def write_hf(folder: Path, master: Weights) -> None:
    from safetensors.torch import save_file

    save_file(hf_weights(master), folder / "model.safetensors", metadata={"format": "pt"})


def write_mlx(folder: Path, master: Weights, bits: int) -> dict[str, Any]:
    """Quantize from the float32 weights; return the "quantization" entry of config.json."""
    import mlx.core as mx

    quantization: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}
    out = {}
    for name, tensor in master.items():
        weight = mx.array(tensor.numpy())
        base = name.removesuffix(".weight").replace(".experts.", ".switch_mlp.")
        if weight.ndim < 2:
            out[f"{base}.weight"] = weight.astype(mx.bfloat16)
            continue
        router = base.endswith("mlp.gate")
        if router:
            quantization[base] = {"group_size": GROUP_SIZE, "bits": ROUTER_BITS}
        packed = mx.quantize(weight, GROUP_SIZE, ROUTER_BITS if router else bits)
        out[f"{base}.weight"] = packed[0]
        out[f"{base}.scales"], out[f"{base}.biases"] = (x.astype(mx.bfloat16) for x in packed[1:])
    mx.save_safetensors(str(folder / "model.safetensors"), out, metadata={"format": "mlx"})
    return quantization


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def export(checkpoint: Path, tokenizer_file: Path, folder: Path, bits: int) -> None:
    """Write a model folder; bits 16 is Hugging Face's layout. An existing folder is replaced."""
    state = torch.load(checkpoint, weights_only=True)
    config, master = ModelConfig(**state["config"]), state["optimizer"]["master"]
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fields = model_config(config, tokenizer)
    if bits == 16:
        write_hf(partial, master)
    else:
        fields["quantization"] = write_mlx(partial, master, bits)
    _write_json(partial / "config.json", fields)
    _write_json(partial / "generation_config.json", generation_config(tokenizer))
    _write_json(
        partial / "tokenizer_config.json",
        tokenizer_config(tokenizer, config.max_position_embeddings),
    )
    shutil.copy(tokenizer_file, partial / "tokenizer.json")
    for path in partial.iterdir():
        path.chmod(0o644)
    replace_folder(folder, partial)


def replace_folder(folder: Path, new: Path) -> None:
    """Put `new` where `folder` is, leaving no time in which half of it is there."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/tokenizer.json"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=16)
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.tokenizer, arguments.out, arguments.bits)


if __name__ == "__main__":
    main()
