"""Checkpoints of the releases' shapes with random weights: speed and memory without a download.

    write_checkpoint(shape_config(find("0.6b").release), 4, folder)

Written a tensor at a time; quantized tensors are random integers, so nothing is ever quantized.
What such a model says is noise; how fast it says it is not. The layout is MLX's, with the experts
of a layer in one tensor; `published` asks for that of the releases, to convert.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_qwen3.errors import DeviceError, OptionError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.weights import tensor_shapes
from mlx_qwen3.releases import Release

Array = np.ndarray[Any, Any]

GROUP_SIZE = 64
QUANTIZED = (2, 3, 4, 5, 6, 8)
FLOATS = {16: ("BF16", "bfloat16"), 32: ("F32", "float32")}
BITS = (*QUANTIZED, *FLOATS)
_DRAWN = 1 << 20  # values drawn for a matrix; larger ones repeat them
# Spread of an embedding's values: in smaller ones what layers add, which is about the same for all
# tokens of random weights, would drown the token, and all be routed alike.
_EMBEDDED = 16.0
_BYTES = {"U32": 4, "F32": 4, "BF16": 2}


@dataclass(frozen=True)
class Stored:
    """A tensor of the file. dtype: in safetensors' spelling."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * _BYTES[self.dtype]


def shape_config(
    release: Release,
    *,
    layers: int | None = None,
    hidden: int | None = None,
    vocab: int | None = None,
) -> dict[str, Any]:
    """config.json of a release, as transformers 4 writes it, or of a smaller model of its kind.

    layers, vocab: that many instead. hidden: as narrow as that, with fewer heads and narrower
    feed-forward parts in proportion; head_dim, experts and the ratio of heads stay, since
    kernels depend on them. Raises OptionError for a hidden that no quantization group divides.
    """
    sizes = asdict(release.architecture)
    if hidden is not None:
        sizes |= _narrowed(sizes, hidden)
    sizes |= {"num_hidden_layers": layers} if layers is not None else {}
    sizes |= {"vocab_size": vocab} if vocab is not None else {}
    sparse = sizes["num_experts"] > 0
    for key in () if sparse else ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
        sizes.pop(key)
    sparse_only = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return {
        "model_type": "qwen3_moe" if sparse else "qwen3",
        **sizes,
        "max_position_embeddings": release.max_position_embeddings,
        "rope_theta": release.rope_theta,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 151645,
        **(sparse_only if sparse else {}),
    }


def _narrowed(sizes: dict[str, Any], hidden: int) -> dict[str, int]:
    if hidden < GROUP_SIZE or hidden % GROUP_SIZE:
        raise OptionError(f"hidden is {hidden}; expected a multiple of {GROUP_SIZE}")
    share = hidden / sizes["hidden_size"]
    kv_heads = max(1, round(sizes["num_key_value_heads"] * share))
    ratio = sizes["num_attention_heads"] // sizes["num_key_value_heads"]
    return {
        "hidden_size": hidden,
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * ratio,
        **{key: _rounded(sizes[key] * share) for key in ("intermediate_size",)},
        **{key: _rounded(sizes[key] * share) for key in ("moe_intermediate_size",) if sizes[key]},
    }


def _rounded(width: float) -> int:
    """Up to whole quantization groups."""
    return -(-int(width) // GROUP_SIZE) * GROUP_SIZE


def write_checkpoint(
    config: dict[str, Any], bits: int, folder: Path, *, published: bool = False
) -> Path:
    """Write config.json and model.safetensors; returns the folder.

    bits: 2, 3, 4, 5, 6, 8 (affine groups of 64), 16 (bfloat16) or 32 (float32).
    published: experts one by one, as the releases have them; for 16 and 32 bits only.
    Raises OptionError for others, DeviceError when the disk has no room.
    """
    tensors = stored_tensors(config, bits, published=published)
    if bits in QUANTIZED:
        quantization = {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}
        config = config | {"quantization": quantization, "quantization_config": quantization}
    else:
        config = config | {"torch_dtype": FLOATS[bits][1]}
    folder.mkdir(parents=True, exist_ok=True)
    _require_room(folder, sum(tensor.nbytes for tensor in tensors))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_safetensors(folder / "model.safetensors", tensors, bits)
    return folder


def stored_tensors(config: dict[str, Any], bits: int, *, published: bool = False) -> list[Stored]:
    """What the checkpoint of a config holds. Raises OptionError for bits not known."""
    if bits not in BITS:
        raise OptionError(f"bits is {bits}; expected one of {', '.join(map(str, BITS))}")
    if published and bits not in FLOATS:
        raise OptionError(f"bits is {bits}; the published layout has 16 or 32")
    shapes = tensor_shapes(ModelConfig.from_dict(config))
    named = shapes if published else dict(_mlx_names(shapes))
    if bits in FLOATS:
        return [Stored(name, FLOATS[bits][0], shape) for name, shape in named.items()]
    return [one for name, shape in named.items() for one in _packed(name, shape, bits)]


def _mlx_names(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Experts stacked, as MLX-format checkpoints have them."""
    numbers = [
        int(name.split(".experts.")[1].split(".")[0]) for name in shapes if ".experts." in name
    ]
    experts = max(numbers, default=-1) + 1
    for name, shape in shapes.items():
        if ".experts." not in name:
            yield name, shape
        elif ".experts.0." in name:
            yield name.replace(".experts.0.", ".switch_mlp."), (experts, *shape)


def _packed(name: str, shape: tuple[int, ...], bits: int) -> Iterator[Stored]:
    """The tensors that a matrix or norm is stored as."""
    if len(shape) == 1:
        yield Stored(name, "BF16", shape)
        return
    groups = (*shape[:-1], shape[-1] // GROUP_SIZE)
    yield Stored(name, "U32", (*shape[:-1], shape[-1] * bits // 32))
    yield Stored(name.replace(".weight", ".scales"), "BF16", groups)
    yield Stored(name.replace(".weight", ".biases"), "BF16", groups)


def _require_room(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise DeviceError(
            f"{folder} has {free / 1e9:.1f} GB free, the random weights take {nbytes / 1e9:.1f}; "
            "set TMPDIR to a folder with room"
        )


def _write_safetensors(file: Path, tensors: list[Stored], bits: int) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    raw = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    untied = any(tensor.name.startswith("lm_head.") for tensor in tensors)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in tensors:
            for _ in range(tensor.shape[0] if len(tensor.shape) == 3 else 1):
                # A tied embedding is a projection too, of unit gain.
                embeds = untied and "embed_tokens" in tensor.name
                stream.write(_values(tensor, bits, generator, embeds=embeds).tobytes())


def _values(tensor: Stored, bits: int, generator: np.random.Generator, *, embeds: bool) -> Array:
    """The values of a tensor, or of one of its experts: projections of about unit gain.

    embeds: rows of spread _EMBEDDED instead.
    """
    shape = tensor.shape[-2:]
    if tensor.dtype == "U32":
        return generator.integers(0, 1 << 32, shape, dtype=np.uint32)
    if len(shape) == 1:
        return _as_stored(np.ones(shape, np.float32), tensor.dtype)
    if tensor.name.endswith(".weight"):
        count = min(int(np.prod(shape)), _DRAWN)
        normal = np.resize(generator.standard_normal(count, np.float32), shape)
        return _as_stored(
            normal / np.float32(1 / _EMBEDDED if embeds else shape[-1] ** 0.5), tensor.dtype
        )
    # Integers of 0..2^bits-1, uniform: their middle goes to 0, their spread to 1 / sqrt(in).
    scale = (12 / (shape[-1] * GROUP_SIZE)) ** 0.5 / 2**bits
    scale *= _EMBEDDED * (shape[-1] * GROUP_SIZE) ** 0.5 if embeds else 1
    value = scale if tensor.name.endswith(".scales") else -scale * (2**bits - 1) / 2
    return _as_stored(np.full(shape, value, np.float32), tensor.dtype)


def _as_stored(values: Array, dtype: str) -> Array:
    """float32 to the bytes of the file's dtype; bfloat16 is its upper half."""
    return values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)
