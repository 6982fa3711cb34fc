"""Every format and option the readers are tested with, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.checkpoints import write_checkpoint
from tests.convert.readers import formats
from tests.model.tiny_models import TINY_MODELS

# Wide enough for groups of 128 and super-blocks of 256; o_proj and experts are narrower.
_SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "head_dim": 32,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "dense": TINY_MODELS["dense"].config | _SIZES,
    "moe": TINY_MODELS["moe"].config
    | _SIZES
    | {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2},
}


@dataclass(frozen=True)
class Case:
    """error: how far a weight may be from the original, relative to the largest of its tensor."""

    write: Callable[..., Path]
    error: float
    options: Mapping[str, Any] = field(default_factory=dict)


def _gguf(kind: str, error: float) -> dict[str, Case]:
    return {f"gguf-{kind}": Case(formats.write_gguf, error, {"type": kind})}


CASES: dict[str, Case] = {
    "float32": Case(write_checkpoint, 0, {"dtype": "float32"}),
    "float16": Case(write_checkpoint, 6e-4, {"dtype": "float16"}),
    "bfloat16": Case(write_checkpoint, 4e-3, {"dtype": "bfloat16", "shards": 3}),
    "stacked": Case(formats.write_stacked, 4e-3, {"shards": 2}),
    "mlx-layout": Case(write_checkpoint, 4e-3, {"dtype": "bfloat16", "layout": "mlx"}),
    "fp8": Case(formats.write_fp8, 0.04),
    "fp8-partial": Case(formats.write_fp8, 0.04, {"block": (96, 80), "scale_dtype": "float32"}),
    "fp8-stacked": Case(
        formats.write_fp8, 0.04, {"block": (96, 80), "layout": "hf-stacked", "dtype": "float16"}
    ),
    "fp8-whole": Case(formats.write_fp8, 0.04, {"block": None}),
    "gptq": Case(formats.write_gptq, 0.07),
    "gptq-8": Case(formats.write_gptq, 0.01, {"bits": 8, "dtype": "bfloat16"}),
    "gptq-2": Case(formats.write_gptq, 0.4, {"bits": 2, "group_size": 32, "sym": False}),
    "gptq-asym": Case(formats.write_gptq, 0.07, {"sym": False, "group_size": 32}),
    "gptq-v2": Case(formats.write_gptq, 0.07, {"sym": False, "v2": True, "group_size": 64}),
    "gptq-desc-act": Case(formats.write_gptq, 0.07, {"desc_act": True, "group_size": 64}),
    "gptq-per-row": Case(formats.write_gptq, 0.01, {"bits": 8, "group_size": -1}),
    "gptq-per-row-desc-act": Case(
        formats.write_gptq, 0.01, {"bits": 8, "group_size": -1, "desc_act": True}
    ),
    "awq": Case(formats.write_awq, 0.07),
    "awq-32": Case(formats.write_awq, 0.07, {"group_size": 32, "dtype": "bfloat16"}),
    "mlx-2": Case(formats.write_mlx, 0.51, {"bits": 2}),
    "mlx-3": Case(formats.write_mlx, 0.26, {"bits": 3, "group_size": 32, "dtype": "float16"}),
    "mlx-4": Case(formats.write_mlx, 0.14),
    "mlx-5": Case(formats.write_mlx, 0.07, {"bits": 5, "layout": "hf"}),
    "mlx-6": Case(formats.write_mlx, 0.04, {"bits": 6, "group_size": 128}),
    "mlx-8": Case(formats.write_mlx, 0.01, {"bits": 8, "dtype": "float32"}),
    "mlx-mxfp4": Case(formats.write_mlx, 0.2, {"mode": "mxfp4", "group_size": 32}),
    "mlx-mxfp8": Case(formats.write_mlx, 0.07, {"mode": "mxfp8", "group_size": 32, "bits": 8}),
    "mlx-nvfp4": Case(
        formats.write_mlx, 0.2, {"mode": "nvfp4", "group_size": 16, "global_scale": True}
    ),
    **_gguf("F32", 0),
    **_gguf("F16", 6e-4),
    **_gguf("BF16", 4e-3),
    **_gguf("Q4_0", 0.13),
    **_gguf("Q4_1", 0.07),
    **_gguf("Q5_0", 0.07),
    **_gguf("Q5_1", 0.04),
    **_gguf("Q8_0", 5e-3),
    **_gguf("Q2_K", 0.4),
    **_gguf("Q3_K", 0.3),
    **_gguf("Q4_K", 0.07),
    **_gguf("Q5_K", 0.04),
    **_gguf("Q6_K", 0.04),
}
# Formats whose every packed matrix has an exact affine form, and its bits and group size.
EXACT: dict[str, set[tuple[int, int]]] = {
    "gptq": {(4, 128)},
    "gptq-8": {(8, 128)},
    "gptq-2": {(2, 32)},
    "gptq-asym": {(4, 32)},
    "gptq-v2": {(4, 64)},
    "gptq-per-row": {(8, 128)},
    "gptq-per-row-desc-act": {(8, 128)},
    "awq": {(4, 128)},
    "awq-32": {(4, 32)},
    "mlx-2": {(2, 64)},
    "mlx-3": {(3, 32)},
    "mlx-4": {(4, 64)},
    "mlx-5": {(5, 64)},
    "mlx-6": {(6, 128)},
    "mlx-8": {(8, 64)},
    "gguf-Q4_0": {(4, 32)},
    "gguf-Q4_1": {(4, 32)},
    "gguf-Q5_0": {(5, 32)},
    "gguf-Q5_1": {(5, 32)},
    "gguf-Q8_0": {(8, 32)},
    "gguf-Q4_K": {(4, 32), (5, 32)},  # Q5_0 where rows are no multiple of 256
    "gguf-Q5_K": {(5, 32)},
}
