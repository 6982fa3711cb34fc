"""Loading needs the model and one layer, not the model twice.

Each case loads in a process of its own a checkpoint of some 300 MB: a sparse file, all zeros,
which costs no disk, while what it is read into is memory like any other. The system's page
cache is not counted, as MLX reads files and maps none.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.device import Device
from tests.checkpoints import tensor_shapes
from tests.model.tiny_models import TINY_MODELS

ROOT = Path(__file__).parents[2]
BYTES = {"BF16": 2, "F32": 4, "U32": 4}

DENSE = TINY_MODELS["dense"].config | {
    "hidden_size": 1024,
    "head_dim": 128,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 3072,
    "num_hidden_layers": 9,
    "torch_dtype": "bfloat16",
}
MOE = TINY_MODELS["moe"].config | {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 256,
    "num_experts": 32,
    "num_hidden_layers": 6,
    "torch_dtype": "float32",
}

# What a process grows by beside the tensors: code, MLX's own structures, Python objects.
OVERHEAD = 40e6

LOAD = """
import json, sys
from mlx_qwen3.model.weights import load_model
import mlx.core as mx
from tests.model.peak import peak_resident

before = peak_resident()
model = load_model(sys.argv[1], dtype=sys.argv[2])
result = {"resident": peak_resident() - before, "held": mx.get_active_memory()}
result["peak"] = mx.get_peak_memory()
print(json.dumps(result))
"""

Entries = dict[str, tuple[str, tuple[int, ...]]]


def bfloat16_entries(config: dict[str, Any]) -> Entries:
    return {name: ("BF16", shape) for name, shape in tensor_shapes(config).items()}


def quantized_entries(config: dict[str, Any]) -> Entries:
    """Every matrix in 8 bits, groups of 64, as MLX lays them out."""
    entries: Entries = {}
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            entries[name] = ("BF16", shape)
            continue
        prefix, (rows, columns) = name.removesuffix(".weight"), shape
        entries[name] = ("U32", (rows, columns // 4))
        entries[f"{prefix}.scales"] = ("BF16", (rows, columns // 64))
        entries[f"{prefix}.biases"] = ("BF16", (rows, columns // 64))
    return entries


def size(entry: tuple[str, tuple[int, ...]]) -> int:
    return BYTES[entry[0]] * math.prod(entry[1])


def write_sparse(folder: Path, config: dict[str, Any], entries: Entries) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + size(entry)
        header[name] = {"dtype": entry[0], "shape": entry[1], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config))


def largest_layer(entries: Entries) -> int:
    layers: dict[str, int] = {}
    for name, entry in entries.items():
        if name.startswith("model.layers."):
            layer = name.split(".")[2]
            layers[layer] = layers.get(layer, 0) + size(entry)
    return max(layers.values())


def load_elsewhere(folder: Path, dtype: str) -> dict[str, int]:
    """Load in another process; how many bytes it grew by, MLX held, and MLX held at its peak."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), dtype],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return dict(json.loads(done.stdout))


def float32_entries(config: dict[str, Any]) -> Entries:
    return {name: ("F32", shape) for name, (_, shape) in bfloat16_entries(config).items()}


CASES = {
    "dense": (DENSE, bfloat16_entries),
    "moe": (MOE, float32_entries),  # the one dtype experts have on every backend
    "quantized": (DENSE | {"num_hidden_layers": 17}, quantized_entries),
}


@pytest.mark.parametrize("name", CASES)
def test_loading_peaks_at_the_model_and_one_layer(name: str, tmp_path: Path) -> None:
    config, make_entries = CASES[name]
    entries = make_entries(config)
    write_sparse(tmp_path, config, entries)
    model, layer = sum(map(size, entries.values())), largest_layer(entries)
    assert 250e6 < model < 350e6
    assert layer + OVERHEAD < model / 3  # or the bounds below would allow the model twice

    result = load_elsewhere(tmp_path, config["torch_dtype"])
    assert model <= result["held"] <= model * 1.01
    assert result["peak"] <= model + layer * 1.1
    if Device.current().backend == "cpu":  # a GPU's memory is not this process's on CUDA
        assert result["resident"] >= model * 0.9
        assert result["resident"] <= model + layer + OVERHEAD


def test_casting_happens_layer_by_layer(tmp_path: Path) -> None:
    """A bfloat16 file loaded as float32 is twice its size in memory, not three times."""
    config = DENSE | {"num_hidden_layers": 5}
    entries = bfloat16_entries(config)
    write_sparse(tmp_path, config, entries)
    model, layer = 2 * sum(map(size, entries.values())), 2 * largest_layer(entries)
    result = load_elsewhere(tmp_path, "float32")
    assert model <= result["held"] <= model * 1.01
    assert result["peak"] <= model + layer * 1.6  # the layer in both dtypes
