"""Checkpoints of the real releases' shapes with random weights, for speed and memory.

    python tests/bench/random_checkpoint.py 0.6b --bits 4 --out /tmp/shape-0.6b

Written in MLX format, a tensor at a time; quantized tensors are random integers, so nothing is
ever quantized. What such a model says is noise; how fast it says it is not. With --bits 16 it is
a bfloat16 checkpoint in the layout of the published ones, to convert.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.weights import tensor_shapes
from mlx_qwen3.releases import Release, find

Entry = tuple[str, str, tuple[int, ...]]

GROUP_SIZE = 64
_DTYPE_NAMES = {"uint32": "U32", "uint16": "BF16"}


def config_of(release: Release) -> dict[str, Any]:
    """config.json of a release, as transformers 4 writes it."""
    architecture = asdict(release.architecture)
    sparse = architecture["num_experts"] > 0
    if not sparse:
        for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size"):
            architecture.pop(key)
    sparse_only = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return {
        "model_type": "qwen3_moe" if sparse else "qwen3",
        **architecture,
        "max_position_embeddings": release.max_position_embeddings,
        "rope_theta": release.rope_theta,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 151645,
        **(sparse_only if sparse else {}),
    }


def write(release: Release, bits: int, folder: Path, layers: int | None = None) -> Path:
    """Write the checkpoint, or its first layers; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(release)
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    tensors = tensor_shapes(ModelConfig.from_dict(config))
    if bits == 16:
        entries = [(name, "uint16", shape) for name, shape in tensors.items()]
    else:
        stacked = dict(_mlx_names(tensors))
        entries = [one for name, shape in stacked.items() for one in _stored(name, shape, bits)]
        quantization = {"group_size": GROUP_SIZE, "bits": bits, "mode": "affine"}
        config |= {"quantization": quantization, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_safetensors(folder / "model.safetensors", entries)
    return folder


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


def _stored(name: str, shape: tuple[int, ...], bits: int) -> Iterator[Entry]:
    """(name, dtype, shape) of each tensor a matrix or norm is stored as."""
    if len(shape) == 1:
        yield name, "uint16", shape
        return
    groups = (*shape[:-1], shape[-1] // GROUP_SIZE)
    yield name, "uint32", (*shape[:-1], shape[-1] * bits // 32)
    yield name.replace(".weight", ".scales"), "uint16", groups
    yield name.replace(".weight", ".biases"), "uint16", groups


def _write_safetensors(file: Path, entries: list[Entry]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, dtype, shape in entries:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    raw = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        for name, dtype, shape in entries:
            for row in range(shape[0]) if len(shape) == 3 else (0,):
                del row
                stream.write(_values(name, dtype, shape[-2:], generator).tobytes())


def _values(
    name: str, dtype: str, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    if dtype == "uint32":
        return generator.integers(0, 1 << 32, shape, dtype=np.uint32)
    if len(shape) == 2 and name.endswith(".weight"):
        values = np.resize(generator.standard_normal(1 << 20, np.float32), shape) / shape[-1] ** 0.5
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    # Integers of 0..2^bits-1 around their middle; a scale that gives a unit-gain projection.
    value = {"scales": 0.004, "biases": -0.03}.get(name.rsplit(".", 1)[1], 1.0)
    bits = np.full(shape, value, np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the release has")
    arguments = parser.parse_args()
    release = find(arguments.release).release
    print(write(release, arguments.bits, arguments.out, arguments.layers))


if __name__ == "__main__":
    main()
