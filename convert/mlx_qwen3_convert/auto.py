"""Recipes made to measure: a bits-per-weight budget spent where it buys most.

    measured = measure_folder(folder)         what each part costs in each format
    chosen = choose_recipe(measured, 4.5)     the recipe with the least divergence at 4.5 bits
    chosen.recipe                             for convert; recipe.as_json() is its file

`auto_recipe` does both and measures the whole recipe. Costs of single parts are taken to add
up, which holds while they are small: a `Choice` has both what was predicted from that and what
was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_qwen3.model.linear import Quantization
from mlx_qwen3.model.policy import DTYPES
from mlx_qwen3.model.weights import load_model
from mlx_qwen3_convert.budget import Harms, Paths, fitting, spend
from mlx_qwen3_convert.calibration import CALIBRATION, read_text, read_windows
from mlx_qwen3_convert.evaluate import Score
from mlx_qwen3_convert.groups import Group
from mlx_qwen3_convert.mixed import FLOAT, part_of, plan_for
from mlx_qwen3_convert.plan import Plan
from mlx_qwen3_convert.recipes import Recipe
from mlx_qwen3_convert.sensitivity import CANDIDATES, Bench, Sensitivity, measure
from mlx_qwen3_convert.stream import Progress, silent

TOKENS = 4096  # of calibration text
_NAME = re.compile(r"auto-(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Auto:
    """A recipe still to be measured, by the name it will have."""

    name: str
    bits_per_weight: float


def find_auto(name: str) -> Auto | None:
    """auto-BITS; None for other names."""
    found = _NAME.fullmatch(name)
    return None if found is None else Auto(name, float(found[1]))


@dataclass(frozen=True)
class Measured:
    """A model in memory and its sensitivities. plan: what a conversion to floats would write."""

    bench: Bench
    plan: Plan
    sensitivities: Sequence[Sensitivity]


@dataclass(frozen=True)
class Choice:
    """A recipe for a budget.

    formats: of each measured group. predicted: the sum of their costs, nats per token. score:
    of the model quantized by the recipe, against itself; None when it was not measured.
    """

    recipe: Recipe
    formats: Mapping[Group, Quantization]
    bits_per_weight: float
    predicted: float
    score: Score | None = None


def auto_recipe(
    folder: str | Path,
    bits_per_weight: float,
    *,
    calibration: str | Path | None = None,
    tokens: int = TOKENS,
    dtype: str | None = None,
    progress: Progress = silent,
) -> tuple[Choice, Measured]:
    """The recipe with the least divergence at no more than `bits_per_weight`, and its reasons.

    folder: an unquantized checkpoint that fits in memory. calibration: a text file; None: the
    bundled text. dtype: of scales, as in `convert`. Raises OptionError when the budget is too
    small, or the checkpoint is quantized already.
    """
    _require_possible(plan_for(Path(folder), FLOAT, dtype=dtype), bits_per_weight)
    measured = measure_folder(
        folder, calibration=calibration, tokens=tokens, dtype=dtype, progress=progress
    )
    choice = choose_recipe(measured, bits_per_weight)
    return replace(choice, score=measured.bench.score_recipe(choice.recipe)), measured


def measure_folder(
    folder: str | Path,
    *,
    calibration: str | Path | None = None,
    tokens: int = TOKENS,
    context: int = 512,
    candidates: Sequence[Quantization] = CANDIDATES,
    dtype: str | None = None,
    progress: Progress = silent,
) -> Measured:
    """Load a checkpoint and measure every group in every candidate format."""
    folder = Path(folder)
    plan = plan_for(folder, FLOAT, dtype=dtype)
    windows = read_windows(
        folder, text=read_text(calibration, CALIBRATION), context=context, tokens=tokens
    )
    bench = Bench(load_model(folder), windows, DTYPES[plan.dtype])
    return Measured(bench, plan, measure(bench, candidates, progress))


def choose_recipe(measured: Measured, bits_per_weight: float) -> Choice:
    """The best recipe for a budget. Raises OptionError when it is too small."""
    groups = {found.group.paths: found.group for found in measured.sensitivities}
    costs = {found.group.paths: found.costs for found in measured.sensitivities}
    spent = spend(f"auto-{bits_per_weight:g}", measured.plan, costs, bits_per_weight)
    formats = {groups[paths]: stored for paths, stored in spent.formats.items()}
    return Choice(spent.recipe, formats, spent.bits_per_weight, spent.harm)


def _require_possible(plan: Plan, bits_per_weight: float) -> None:
    """Refuse a budget that is too small before anything is measured. Raises OptionError."""
    parts: dict[Paths, Harms] = {
        (matrix.path,): dict.fromkeys(fitting(matrix.columns, CANDIDATES), 0.0)
        for matrix in plan.matrices
        if part_of(matrix.path) is not None and fitting(matrix.columns, CANDIDATES)
    }
    spend("", plan, parts, bits_per_weight)


def write_recipe(recipe: Recipe, file: Path) -> None:
    """As a file that `--recipe` takes."""
    text = json.dumps(recipe.as_json(), indent=2) + "\n"
    file.write_text(text, encoding="utf-8")
