"""The model card: what this is, how it was made, what was lost on the way."""

from __future__ import annotations

from mlx_qwen3_convert.formats import describe
from mlx_qwen3_convert.plan import FLOAT_NAMES, Action, Matrix, Plan

_WORDS: dict[Action, str] = {
    "exact": "repacked exactly",
    "quantized": "quantized",
    "requantized": "quantized again",
    "copied": "kept in floating point",
}


def model_card(name: str, source_format: str, plan: Plan) -> str:
    """README.md of the output. name: the source's repo id or folder."""
    recipe = "imported as it was" if plan.recipe is None else f"recipe `{plan.recipe.name}`"
    rows = "\n".join(
        f"| {_WORDS[action]} | {origin} | {to} | {count} | {share:.1%} |"
        for (action, origin, to), (count, share) in _summary(plan).items()
    )
    return f"""---
license: apache-2.0
library_name: mlx
pipeline_tag: text-generation
tags:
- mlx
- qwen3
---

# {name.rstrip("/").rsplit("/", 1)[-1]}, MLX

{name} ({source_format}), converted by mlx-qwen3: {recipe},
{plan.bits_per_weight:.2f} bits per weight, scales in {plan.dtype}.

| tensors | from | to | count | of the weights |
|---|---|---|---|---|
{rows}

    mlx-qwen3 generate "Hello" --model THIS_FOLDER
    mlx_lm.generate --model THIS_FOLDER --prompt "Hello"
"""


def _summary(plan: Plan) -> dict[tuple[Action, str, str], tuple[int, float]]:
    total = sum(matrix.weights for matrix in plan.matrices)
    rows: dict[tuple[Action, str, str], tuple[int, float]] = {}
    for matrix in plan.matrices:
        key = (matrix.action, matrix.origin, _stored(matrix))
        count, share = rows.get(key, (0, 0.0))
        rows[key] = (count + 1, share + matrix.weights / total)
    return dict(sorted(rows.items(), key=lambda row: -row[1][1]))


def _stored(matrix: Matrix) -> str:
    return FLOAT_NAMES[matrix.dtype] if matrix.stored is None else describe(matrix.stored)
