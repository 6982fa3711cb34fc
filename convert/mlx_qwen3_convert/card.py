"""The model card: what this is, how it was made, what was lost on the way, how to run it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_qwen3_convert.evaluate import Score
from mlx_qwen3_convert.formats import describe
from mlx_qwen3_convert.origin import Origin
from mlx_qwen3_convert.plan import FLOAT_NAMES, Action, Matrix, Plan

_WORDS: dict[Action, str] = {
    "exact": "repacked exactly",
    "quantized": "quantized",
    "requantized": "quantized again",
    "copied": "kept in floating point",
}
# Stands in the commands until the model has a place where others find it.
_PLACE = "PATH/TO/THIS/FOLDER"
_EVALUATION = "## Evaluation"
_MODEL = re.compile(r"^(    .* --model )\S+", re.MULTILINE)


@dataclass(frozen=True)
class Making:
    """How a model was made. recipe: in words. dtype: of scales; table: what became of what."""

    recipe: str
    bits_per_weight: float
    dtype: str
    table: str = ""

    @classmethod
    def of(cls, plan: Plan) -> Making:
        """What a plan will write."""
        recipe = "imported as it was" if plan.recipe is None else f"recipe `{plan.recipe.name}`"
        return cls(recipe, plan.bits_per_weight, plan.dtype, _table(plan))


def model_card(
    origin: Origin, source_format: str, making: Making, licence: Mapping[str, str]
) -> str:
    """README.md of the output. licence: entries of the front matter."""
    matter = [f"{key}: {value}" for key, value in licence.items()]
    if origin.is_repo:
        matter += [f"base_model: {origin.name}", "base_model_relation: quantized"]
    head = "\n".join([*matter, "library_name: mlx", "pipeline_tag: text-generation"])
    licensed = licence.get("license_name") or licence.get("license")
    return f"""---
{head}
tags:
- mlx
- qwen3
---

# {origin.name.rsplit("/", 1)[-1]}, MLX

{_source(origin)} ({source_format}), converted by mlx-qwen3: {making.recipe},
{making.bits_per_weight:.2f} bits per weight, scales in {making.dtype}. \
{f"Licence: {licensed}." if licensed else "The source names no licence."}
{making.table}
## Run

    mlx-qwen3 generate "Hello" --model {_PLACE}
    mlx_lm.generate --model {_PLACE} --prompt "Hello"
"""


def _source(origin: Origin) -> str:
    if not origin.is_repo:
        return origin.name
    revision = f" at revision `{origin.revision}`" if origin.revision else ""
    return f"[{origin.name}](https://huggingface.co/{origin.name}){revision}"


def with_evaluation(card: str, section: str) -> str:
    """The card with this evaluation, in the place of an earlier one."""
    before, found, after = card.partition(f"{_EVALUATION}\n")
    rest = re.search(r"^#{1,2} ", after, re.MULTILINE) if found else None
    tail = f"\n{after[rest.start() :]}" if rest else ""
    return f"{before.rstrip()}\n\n{_EVALUATION}\n\n{section.strip()}\n{tail}"


def has_evaluation(card: str) -> bool:
    """Whether the card tells how good the model is."""
    return f"{_EVALUATION}\n" in card


def with_place(card: str, repo: str) -> str:
    """The card with commands that name the repository."""
    return _MODEL.sub(rf"\g<1>{repo}", card)


def evaluation_section(score: Score, *, text: str, context: int, reference: str | None) -> str:
    """What was measured, in words and a table. text, reference: what they are called."""
    rows = [("perplexity", f"{score.perplexity:.4g}")]
    apart = score.divergence
    if apart is not None:
        rows += [
            ("KL divergence, mean", f"{apart.mean:.4f}"),
            ("KL divergence, 99th percentile", f"{apart.p99:.4f}"),
            ("same likeliest token", f"{apart.top1:.1%}"),
        ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    against = f"; divergence in nats per token from {reference}" if apart is not None else ""
    bound = " (a lower bound: rare tokens counted as one)" if apart and not apart.exact else ""
    return (
        f"{score.tokens:,} tokens of {text} in windows of {context}{against}{bound}.\n\n"
        f"| figure | value |\n|---|---|\n{table}\n"
    )


def _table(plan: Plan) -> str:
    rows = "\n".join(
        f"| {_WORDS[action]} | {origin} | {to} | {count} | {share:.1%} |"
        for (action, origin, to), (count, share) in _summary(plan).items()
    )
    return f"""
| tensors | from | to | count | of the weights |
|---|---|---|---|---|
{rows}
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
