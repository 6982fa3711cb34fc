"""Opening reads headers, and a slice of a file far larger than memory may be takes little of it.

The files are sparse: gigabytes that cost no disk. Each case runs in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.convert.readers.cases import CONFIGS

ROOT = Path(__file__).parents[3]
HIDDEN, WIDE, GROUP = 32768, 131072, 128
NAME = "model.layers.0.mlp.gate_proj"
CONFIG = CONFIGS["dense"] | {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": 1,
}
BYTES = {"BF16": 2, "F16": 2, "I32": 4, "F8_E4M3": 1, "U32": 4}
Entries = Mapping[str, tuple[str, tuple[int, ...]]]

READ = """
import sys
from pathlib import Path

import mlx.core as mx
from mlx_qwen3_convert.readers import awq, fp8, gguf, gptq, mlx, open_source, safetensors
from tests.model.peak import peak_resident

def read_so_far():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(lines[0].split()[1])

mx.eval(mx.zeros(8) + 1)  # MLX's own start is not counted
has_io = Path("/proc/self/io").exists()
before, bytes_before = peak_resident(), read_so_far() if has_io else 0
source = open_source(sys.argv[1])
opened = read_so_far() - bytes_before if has_io else 0
name = "model.layers.0.mlp.gate_proj.weight"
start = source.tensors[name].shape[0] // 2 + 3
mx.eval(source.rows(name, start, start + 64))
if source.tensors[name].affine is not None:
    mx.eval(source.affine_rows(name, start, start + 64).weight)
print(opened, peak_resident() - before)
"""

FOLDERS: dict[str, tuple[dict[str, Any], Entries]] = {
    "bf16": ({}, {f"{NAME}.weight": ("BF16", (WIDE, HIDDEN))}),
    "fp8": (
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        {
            f"{NAME}.weight": ("F8_E4M3", (WIDE, HIDDEN)),
            f"{NAME}.weight_scale_inv": ("BF16", (WIDE // 128, HIDDEN // 128)),
        },
    ),
    "gptq": (
        {"quantization_config": {"quant_method": "gptq", "desc_act": True}},
        {
            f"{NAME}.qweight": ("I32", (HIDDEN // 8, WIDE)),
            f"{NAME}.qzeros": ("I32", (HIDDEN // GROUP, WIDE // 8)),
            f"{NAME}.scales": ("F16", (HIDDEN // GROUP, WIDE)),
            f"{NAME}.g_idx": ("I32", (HIDDEN,)),
        },
    ),
    "awq": (
        {"quantization_config": {"quant_method": "awq"}},
        {
            f"{NAME}.qweight": ("I32", (HIDDEN, WIDE // 8)),
            f"{NAME}.qzeros": ("I32", (HIDDEN // GROUP, WIDE // 8)),
            f"{NAME}.scales": ("F16", (HIDDEN // GROUP, WIDE)),
        },
    ),
    "mlx": (
        {"quantization": {"bits": 4, "group_size": 64}},
        {
            f"{NAME}.weight": ("U32", (WIDE, HIDDEN // 8)),
            f"{NAME}.scales": ("BF16", (WIDE, HIDDEN // 64)),
            f"{NAME}.biases": ("BF16", (WIDE, HIDDEN // 64)),
        },
    ),
}


def write_sparse(folder: Path, config: Mapping[str, Any], entries: Entries) -> int:
    """A folder whose file is all zeros; how many bytes its header has."""
    header, end = {}, 0
    for name, (dtype, shape) in entries.items():
        start, end = end, end + BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps(config))
    return len(text)


def write_sparse_gguf(folder: Path, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3")
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    row = HIDDEN // block * block_bytes
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    for name, rows in (("token_embd.weight", 256), ("blk.0.ffn_gate.weight", WIDE)):
        writer.add_tensor_info(name, (rows, row), np.dtype(np.uint8), rows * row, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    file = folder / "model.gguf"
    os.truncate(file, file.stat().st_size + (WIDE + 256) * row + 4096)


def read_elsewhere(path: Path) -> tuple[int, int]:
    """Bytes read when opening; how much memory the process grew by in all."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    opened, grown = map(int, done.stdout.split())
    return opened, grown


# 64 rows are 2M weights: 8 MB of floats, with room for the steps on the way there.
SMALL = 40e6


@pytest.mark.parametrize("name", FOLDERS)
def test_a_slice_of_a_huge_tensor_takes_little_memory(name: str, tmp_path: Path) -> None:
    config, entries = FOLDERS[name]
    header = write_sparse(tmp_path, CONFIG | config, entries)
    assert (tmp_path / "model.safetensors").stat().st_size > 2e9
    opened, grown = read_elsewhere(tmp_path)
    assert opened < 3 * header + 20_000  # and config.json
    assert grown < SMALL


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_a_slice_of_a_huge_gguf_takes_little_memory(kind: str, tmp_path: Path) -> None:
    write_sparse_gguf(tmp_path, gguf.GGMLQuantizationType[kind])
    assert (tmp_path / "model.gguf").stat().st_size > 2e9
    opened, grown = read_elsewhere(tmp_path)
    assert opened < 2_000_000  # its header through a buffer of a megabyte
    assert grown < SMALL
