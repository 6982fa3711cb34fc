"""Tiny Qwen3 checkpoints for the tests, the same on every machine and in every numpy.

Every tensor comes from PCG64's raw bit stream (numpy promises to keep it) seeded by the
checkpoint's seed and the tensor's name, so neither torch nor the order of tensors matters.
The tokenizer has one token per byte, with the byte as its id, and Qwen3's special tokens
behind them: `list(text.encode())` is what it encodes a plain text to.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Config = Mapping[str, Any]
Dtype = Literal["float32", "bfloat16", "float16"]
Layout = Literal["hf", "hf-stacked", "mlx"]

# id -> (text, special). Qwen3 declares the think and tool tags as added, but not special.
SPECIAL_TOKENS: dict[int, tuple[str, bool]] = {
    256: ("<|endoftext|>", True),
    257: ("<|im_start|>", True),
    258: ("<|im_end|>", True),
    259: ("<think>", False),
    260: ("</think>", False),
    261: ("<tool_call>", False),
    262: ("</tool_call>", False),
    263: ("<tool_response>", False),
    264: ("</tool_response>", False),
}
EOS_TOKEN_IDS = [258, 256]

# Qwen3's own split: words, single digits, punctuation, whitespace.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function or tool_call %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- (call.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


# --- what a checkpoint of a config holds -------------------------------------------------


def head_dim(config: Config) -> int:
    """What transformers takes where config.json has no head_dim: it differs between the two."""
    if config.get("head_dim") is not None:
        return int(config["head_dim"])
    if config["model_type"] == "qwen3":
        return 128
    return int(config["hidden_size"] // config["num_attention_heads"])


def num_experts(config: Config) -> int:
    """The number of experts; transformers 5 writes it as num_local_experts."""
    return int(config.get("num_experts", config.get("num_local_experts", 0)))


def is_sparse(config: Config, layer: int) -> bool:
    """Whether this layer's MLP is a mixture of experts."""
    step = config.get("decoder_sparse_step", 1)
    return (
        num_experts(config) > 0
        and layer not in (config.get("mlp_only_layers") or [])
        and (layer + 1) % step == 0
    )


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of the Hugging Face layout and its shape, experts one by one."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{k}": v for k, v in _layer_shapes(config, layer)}
    return shapes


def _layer_shapes(config: Config, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config["hidden_size"]
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    yield from _attention_shapes(config)
    if not is_sparse(config, layer):
        yield from _mlp_shapes("mlp", hidden, config["intermediate_size"])
        return
    yield "mlp.gate.weight", (num_experts(config), hidden)
    for expert in range(num_experts(config)):
        yield from _mlp_shapes(f"mlp.experts.{expert}", hidden, config["moe_intermediate_size"])


def _attention_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, size = config["hidden_size"], head_dim(config)
    queries = config["num_attention_heads"] * size
    keys = config["num_key_value_heads"] * size
    outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": hidden}
    for name, rows in outputs.items():
        yield f"self_attn.{name}.weight", (rows, queries if name == "o_proj" else hidden)
        if config.get("attention_bias", False):
            yield f"self_attn.{name}.bias", (rows,)
    yield "self_attn.q_norm.weight", (size,)
    yield "self_attn.k_norm.weight", (size,)


def _mlp_shapes(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.gate_proj.weight", (inner, hidden)
    yield f"{prefix}.up_proj.weight", (inner, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, inner)


# --- their values ------------------------------------------------------------------------


def uniform(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """Uniform float32 in [-1, 1) that depends on the name, the shape and the seed only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    raw = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(math.prod(shape))
    return ((raw >> np.uint64(40)).astype(np.float32) / 2**23 - 1).reshape(shape)


def make_tensor(name: str, shape: tuple[int, ...], seed: int) -> Array:
    """One tensor, scaled so that every layer matters and logits spread by about 2.5."""
    values = uniform(name, shape, seed)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return np.float32(1.5) + np.float32(0.3) * values  # attention that looks somewhere
    if name.endswith("norm.weight"):
        return np.float32(1) + np.float32(0.2) * values
    if name.endswith(".bias"):
        return np.float32(0.5) * values
    spread = 2.5 if "embed_tokens" in name or "lm_head" in name or "mlp.gate." in name else 1.0
    return np.float32(spread * math.sqrt(3 / shape[-1])) * values


def make_tensors(config: Config, seed: int, layout: Layout = "hf") -> dict[str, Array]:
    """Every tensor of a checkpoint in float32; layout says how experts are stored.

    "hf": one tensor each, as the releases have them. "hf-stacked": transformers 5's own,
    experts.gate_up_proj (E, 2I, H) and experts.down_proj (E, H, I). "mlx": mlx-lm's,
    switch_mlp.{gate,up,down}_proj.weight (E, out, in).
    """
    tensors = {n: make_tensor(n, s, seed) for n, s in tensor_shapes(config).items()}
    for layer in range(config["num_hidden_layers"]):
        if layout != "hf" and is_sparse(config, layer):
            _stack_experts(tensors, f"model.layers.{layer}.mlp", num_experts(config), layout)
    return tensors


def _stack_experts(tensors: dict[str, Array], prefix: str, count: int, layout: Layout) -> None:
    names = ("gate_proj", "up_proj", "down_proj")
    stacks = {
        name: np.stack([tensors.pop(f"{prefix}.experts.{i}.{name}.weight") for i in range(count)])
        for name in names
    }
    if layout == "mlx":
        tensors.update({f"{prefix}.switch_mlp.{name}.weight": stacks[name] for name in names})
        return
    gate_up = np.concatenate([stacks["gate_proj"], stacks["up_proj"]], axis=1)
    tensors[f"{prefix}.experts.gate_up_proj"] = gate_up
    tensors[f"{prefix}.experts.down_proj"] = stacks["down_proj"]


def digest(config: Config, tensors: Mapping[str, Array]) -> str:
    """Of a config and its float32 weights: changes when either does."""
    state = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return state.hexdigest()


# --- files -------------------------------------------------------------------------------


def _bfloat16_bytes(values: Array) -> bytes:
    """Rounded to nearest, ties to even, as every framework does."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")).tobytes()


_ENCODERS: dict[str, tuple[str, Callable[[Array], bytes]]] = {
    "float32": ("F32", lambda values: values.astype("<f4").tobytes()),
    "float16": ("F16", lambda values: values.astype("<f2").tobytes()),
    "bfloat16": ("BF16", _bfloat16_bytes),
}


def write_safetensors(path: Path, tensors: Mapping[str, Array], dtype: Dtype = "float32") -> None:
    """One file, written here because numpy's own writer knows no bfloat16."""
    code, encode = _ENCODERS[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, values in tensors.items():
        start = len(data)
        data += encode(values)
        header[name] = {
            "dtype": code,
            "shape": list(values.shape),
            "data_offsets": [start, len(data)],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_weights(
    folder: Path, tensors: Mapping[str, Array], dtype: Dtype = "float32", shards: int = 1
) -> None:
    """model.safetensors, or `shards` files of it and their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_checkpoint(
    folder: Path,
    config: Config,
    seed: int = 0,
    *,
    dtype: Dtype = "float32",
    shards: int = 1,
    layout: Layout = "hf",
) -> Path:
    """A whole folder: config, weights, tokenizer, template and generation_config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_weights(folder, make_tensors(config, seed, layout), dtype, shards)
    write_tokenizer(folder)
    write_generation_config(folder)
    return folder


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unprintable = [byte for byte in range(256) if byte not in printable]
    return [chr(b) if b in printable else chr(256 + unprintable.index(b)) for b in range(256)]


def write_tokenizer(folder: Path) -> Path:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE without merges."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {i: {"content": t, **flags, "special": s} for i, (t, s) in SPECIAL_TOKENS.items()}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": _SPLIT},
        "behavior": "Isolated",
        "invert": False,
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **token} for i, token in added.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {character: byte for byte, character in enumerate(_byte_characters())},
            "merges": [],
        },
    }
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): token for i, token in added.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return folder


def write_generation_config(folder: Path, **overrides: Any) -> Path:
    """generation_config.json as the hybrid releases have it."""
    settings = {
        "bos_token_id": 256,
        "do_sample": True,
        "eos_token_id": EOS_TOKEN_IDS,
        "pad_token_id": 256,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "transformers_version": "4.51.0",
    }
    (folder / "generation_config.json").write_text(json.dumps(settings | overrides, indent=2))
    return folder
