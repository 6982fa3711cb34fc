"""Recipes judged without converting: one model in memory takes on each in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlx_qwen3.model.policy import DTYPES
from mlx_qwen3.model.weights import load_model
from mlx_qwen3_convert.auto import TOKENS, Auto, choose_recipe, measure_folder
from mlx_qwen3_convert.calibration import read_windows
from mlx_qwen3_convert.evaluate import Score, Size
from mlx_qwen3_convert.mixed import FLOAT, AnyRecipe, plan_for
from mlx_qwen3_convert.sensitivity import Bench
from mlx_qwen3_convert.stream import Progress, silent


def compare(
    folder: Path,
    recipes: Sequence[AnyRecipe | Auto],
    *,
    text: str,
    context: int = 512,
    tokens: int | None = None,
    calibration: str | Path | None = None,
    dtype: str | None = None,
    progress: Progress = silent,
) -> list[tuple[Size, Score]]:
    """Size and score of the model as it is, then of what each recipe would make of it.

    folder: an unquantized checkpoint that fits in memory; scores are against it. Automatic
    recipes are measured first, on the text file `calibration`, None being the bundled one.
    dtype: of the computation.
    Raises OptionError for a quantized checkpoint and for recipes that do not fit it.
    """
    windows = read_windows(folder, text=text, context=context, tokens=tokens)
    fixed = _measured(folder, recipes, tokens, calibration, progress)
    plans = [plan_for(folder, recipe) for recipe in (FLOAT, *fixed)]
    bench = Bench(load_model(folder, dtype=dtype), windows, DTYPES[plans[0].dtype])
    found = []
    for plan in plans:
        assert plan.recipe is not None
        size = Size(plan.nbytes, plan.bits_per_weight)
        found.append((size, bench.score_recipe(plan.recipe)))
        progress(len(found), len(plans))
    return found


def _measured(
    folder: Path,
    recipes: Sequence[AnyRecipe | Auto],
    tokens: int | None,
    calibration: str | Path | None,
    progress: Progress,
) -> list[AnyRecipe]:
    """The recipes, with those measured that have to be; all of them at once."""
    if not any(isinstance(recipe, Auto) for recipe in recipes):
        return [recipe for recipe in recipes if not isinstance(recipe, Auto)]
    limit = TOKENS if tokens is None else min(tokens, TOKENS)
    measured = measure_folder(folder, calibration=calibration, tokens=limit, progress=progress)
    return [
        choose_recipe(measured, recipe.bits_per_weight).recipe
        if isinstance(recipe, Auto)
        else recipe
        for recipe in recipes
    ]
