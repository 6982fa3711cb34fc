"""Tiny checkpoints in every format a Qwen3 is published in, written from the formats' descriptions.

    write_<format>(folder, config, seed, **options) -> what `open_source` opens

Weights are those of `tests.checkpoints.make_tensors`, rounded to what the format can hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.checkpoints import (
    Config,
    Dtype,
    Layout,
    make_tensors,
    write_checkpoint,
    write_generation_config,
    write_tokenizer,
)
from tests.convert.readers.gguf_files import write_gguf

__all__ = ["read_raw", "write_awq", "write_fp8", "write_gguf", "write_gptq", "write_mlx",
           "write_raw", "write_stacked"]  # fmt: skip

Array = NDArray[Any]
# safetensors' name of a number type, and the numbers; types numpy lacks as their bits.
Raw = tuple[str, Array]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def write_stacked(
    folder: Path, config: Config, seed: int = 0, *, dtype: Dtype = "bfloat16", shards: int = 1
) -> Path:
    """Unquantized, experts stacked as transformers 5 saves them."""
    return write_checkpoint(folder, config, seed, dtype=dtype, shards=shards, layout="hf-stacked")


def write_gptq(
    folder: Path,
    config: Config,
    seed: int = 0,
    *,
    bits: int = 4,
    group_size: int = 128,
    sym: bool = True,
    desc_act: bool = False,
    v2: bool = False,
    shift: float = 0.0,
    dtype: Dtype = "float16",
) -> Path:
    """GPTQModel's layout. group_size -1: one group a row. shift: added to every weight first."""

    def pack(name: str, values: Array) -> dict[str, Raw]:
        width = values.shape[1]
        size = width if group_size == -1 else group_size
        group = np.arange(width) // size
        if desc_act:
            group = np.random.default_rng(seed + width).permutation(group)
        q, scales, zeros = _round_to_groups(values + np.float32(shift), group, bits, sym=sym)
        words = _pack_last_axis(zeros.T, bits)
        if not v2:  # one less in each place, borrowing across the whole word
            words = words - np.uint32(sum(1 << place for place in range(0, 32, bits)))
        return {
            f"{name}.qweight": ("I32", _pack_last_axis(q, bits).T),
            f"{name}.qzeros": ("I32", words),
            f"{name}.scales": _floats(scales.T, dtype),
            f"{name}.g_idx": ("I32", group.astype("<i4")),
        }

    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "desc_act": desc_act,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
    }
    return _write_packed(folder, config, seed, dtype, settings, pack)


def write_awq(
    folder: Path,
    config: Config,
    seed: int = 0,
    *,
    group_size: int = 128,
    dtype: Dtype = "float16",
) -> Path:
    """AutoAWQ's gemm layout, 4 bits."""

    def pack(name: str, values: Array) -> dict[str, Raw]:
        width = values.shape[1]
        group = np.arange(width) // (width if group_size == -1 else group_size)
        q, scales, zeros = _round_to_groups(values, group, 4, sym=False)
        return {
            f"{name}.qweight": ("I32", _pack_last_axis(_awq_order(q.T), 4)),
            f"{name}.qzeros": ("I32", _pack_last_axis(_awq_order(zeros.T), 4)),
            f"{name}.scales": _floats(scales.T, dtype),
        }

    settings = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": None,
    }
    return _write_packed(folder, config, seed, dtype, settings, pack)


def write_fp8(
    folder: Path,
    config: Config,
    seed: int = 0,
    *,
    block: tuple[int, int] | None = (128, 128),
    scale_dtype: Dtype = "bfloat16",
    dtype: Dtype = "bfloat16",
    layout: Layout = "hf",
) -> Path:
    """Block-wise float8 e4m3; layout "hf-stacked": experts stacked. block None: one scale each."""

    def pack(name: str, values: Array) -> dict[str, Raw]:
        weight = name if name.endswith(("gate_up_proj", "experts.down_proj")) else f"{name}.weight"
        scales = _block_scales(values, block or values.shape[-2:])
        raw = _floats(scales, scale_dtype)
        spread = _spread_blocks(_to_float32(raw), block or values.shape[-2:], values.shape)
        return {
            weight: ("F8_E4M3", to_e4m3(values / spread)),
            f"{weight}_scale_inv": raw,
        }

    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": None if block is None else list(block),
    }
    return _write_packed(folder, config, seed, dtype, settings, pack, layout)


def write_mlx(
    folder: Path,
    config: Config,
    seed: int = 0,
    *,
    bits: int = 4,
    group_size: int = 64,
    mode: str = "affine",
    global_scale: bool = False,
    dtype: Dtype = "bfloat16",
    layout: Layout = "mlx",
) -> Path:
    """As mlx-lm: every matrix whose rows fit packed, the router in 8 bits when affine.

    global_scale: a float32 factor for each expert of a stack, which nvfp4 may have.
    """
    how: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": mode}
    router: dict[str, Any] = {"group_size": 64, "bits": 8, "mode": "affine"}
    raws: dict[str, Raw] = {}
    settings: dict[str, Any] = dict(how)
    for name, values in make_tensors(config, seed, layout).items():
        prefix = name.removesuffix(".weight")
        here = router if prefix.endswith("mlp.gate") else how
        if here is router:
            settings[prefix] = router
        if values.ndim == 1 or values.shape[-1] % here["group_size"]:
            raws[name] = _floats(values, dtype)
        else:
            raws |= _mlx_pack(prefix, values, here, dtype, global_scale=global_scale)
    return _write_folder(folder, {**config, "quantization": settings}, raws)


def _mlx_pack(
    prefix: str, values: Array, how: Mapping[str, Any], dtype: Dtype, *, global_scale: bool
) -> dict[str, Raw]:
    cast = mx.array(values).astype(getattr(mx, dtype))
    if global_scale and values.ndim == 3:
        factors = [mx.abs(expert).max().astype(mx.float32) for expert in cast]
        each = [mx.quantize(w, global_scale=f, **how) for w, f in zip(cast, factors, strict=True)]
        packed = [mx.stack(list(parts)) for parts in zip(*each, strict=True)]
        extra = {f"{prefix}.global_scale": ("F32", np.array(mx.stack(factors)))}
    else:
        packed, extra = list(mx.quantize(cast, **how)), {}
    raws = dict(zip(("weight", "scales", "biases"), map(_raw, packed), strict=False))
    return {f"{prefix}.{part}": raw for part, raw in raws.items()} | extra


def _raw(values: mx.array) -> Raw:
    codes = {mx.uint32: "U32", mx.uint8: "U8", mx.float16: "F16", mx.float32: "F32"}
    if values.dtype == mx.bfloat16:
        return "BF16", np.array(values.view(mx.uint16))
    return codes[values.dtype], np.array(values)


# --- rounding and packing ----------------------------------------------------------------


def _round_to_groups(
    values: Array, group: Array, bits: int, *, sym: bool
) -> tuple[Array, Array, Array]:
    """q (out, in), scales and zeros (out, groups): w = scale * (q - zero), scales in float16."""
    q = np.empty(values.shape, np.uint8)
    scales = np.empty((len(values), group.max() + 1), np.float32)
    zeros = np.empty(scales.shape, np.uint8)
    levels = 2**bits - 1
    for index in range(scales.shape[1]):
        part = values[:, group == index]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if sym:
            high = np.maximum(high, -low)
            low = -high
        scale = ((high - low) / levels).astype(np.float16).astype(np.float32)
        zero = np.full(len(part), 2 ** (bits - 1)) if sym else np.rint(-low / scale)
        rounded = np.rint(part / scale[:, None]) + zero[:, None]
        q[:, group == index] = np.clip(rounded, 0, levels)
        scales[:, index], zeros[:, index] = scale, zero
    return q, scales, zeros


def _pack_last_axis(values: Array, bits: int) -> Array:
    """Neighbours into 32-bit words, the first in the lowest bits."""
    places = values.reshape(len(values), -1, 32 // bits).astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return np.asarray(np.bitwise_or.reduce(places << shifts, axis=-1))


def _awq_order(values: Array) -> Array:
    return values.reshape(len(values), -1, 8)[:, :, AWQ_ORDER].reshape(values.shape)


def _block_scales(values: Array, block: tuple[int, ...]) -> Array:
    """One factor for each block, the last ones partial: the largest weight becomes 448."""
    *leading, rows, columns = values.shape
    padding = [(0, 0)] * len(leading) + [(0, -rows % block[0]), (0, -columns % block[1])]
    padded = np.abs(np.pad(values, padding))
    blocks = padded.reshape(*leading, -(-rows // block[0]), block[0], -1, block[1])
    return np.asarray(blocks.max(axis=(-3, -1)) / 448)


def _spread_blocks(scales: Array, block: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    spread = np.repeat(np.repeat(scales, block[0], axis=-2), block[1], axis=-1)
    return spread[..., : shape[-2], : shape[-1]]


def to_e4m3(values: Array) -> Array:
    """The nearest float8 e4m3, as bits: a search in the 127 magnitudes there are."""
    magnitudes = np.array(
        [(c & 7) / 8 * 2**-6 if c < 8 else (1 + (c & 7) / 8) * 2.0 ** ((c >> 3) - 7)
         for c in range(127)]
    )  # fmt: skip
    halfway = (magnitudes[1:] + magnitudes[:-1]) / 2
    codes = np.searchsorted(halfway, np.abs(values)).astype(np.uint8)
    return np.asarray(codes | (np.signbit(values).astype(np.uint8) << 7))


def _floats(values: Array, dtype: Dtype) -> Raw:
    return _raw(mx.array(np.ascontiguousarray(values)).astype(getattr(mx, dtype)))


def _to_float32(raw: Raw) -> Array:
    if raw[0] == "BF16":
        return (raw[1].astype("<u4") << 16).view("<f4")
    return raw[1].astype(np.float32)


# --- files -------------------------------------------------------------------------------


def _write_packed(
    folder: Path,
    config: Config,
    seed: int,
    dtype: Dtype,
    settings: Mapping[str, Any],
    pack: Callable[[str, Array], dict[str, Raw]],
    layout: Layout = "hf",
) -> Path:
    """Projections packed; embeddings, head, router, norms as floats, as the releases have them."""
    raws: dict[str, Raw] = {}
    for name, values in make_tensors(config, seed, layout).items():
        prefix = name.removesuffix(".weight")
        packed = prefix.endswith("_proj") and values.ndim > 1
        raws |= pack(prefix, values) if packed else {name: _floats(values, dtype)}
    return _write_folder(folder, {**config, "quantization_config": dict(settings)}, raws)


def _write_folder(folder: Path, config: Config, raws: Mapping[str, Raw]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_raw(folder / "model.safetensors", raws)
    write_tokenizer(folder)
    write_generation_config(folder)
    return folder


def write_raw(path: Path, raws: Mapping[str, Raw]) -> None:
    """A safetensors file of any number types."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, (code, values) in raws.items():
        start = len(data)
        data += np.ascontiguousarray(values).tobytes()
        offsets = [start, len(data)]
        header[name] = {"dtype": code, "shape": list(values.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


_NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "U32": "<u4", "U8": "u1",
          "F8_E4M3": "u1"}  # fmt: skip


def read_raw(folder: Path) -> dict[str, Array]:
    """The tensors of model.safetensors as they lie there; 16-bit and wider floats as float32."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[start + first : start + last], _NUMPY[entry["dtype"]])
        if entry["dtype"] in ("F16", "BF16"):
            values = _to_float32((entry["dtype"], values))
        found[name] = values.reshape(entry["shape"])
    return found
