"""A bits-per-weight budget spent on the parts of a model, where it does most good.

What a part loses in each format is the caller's: measured (auto.py) or expected (mixed.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.linear import Quantization
from mlx_qwen3_convert.formats import Format, parse_format
from mlx_qwen3_convert.knapsack import choose
from mlx_qwen3_convert.plan import Matrix, Plan
from mlx_qwen3_convert.recipes import ROUTER, Recipe, Rule

# Recipe paths of matrices that share a format.
Paths = tuple[str, ...]
# What storing a part in each format costs; only their ratios matter.
Harms = Mapping[Quantization, float]
ROUTER_FORMAT = parse_format("8g64")


@dataclass(frozen=True)
class Spent:
    """A recipe within a budget. formats: of each part; harm: the sum of what they cost."""

    recipe: Recipe
    formats: Mapping[Paths, Quantization]
    bits_per_weight: float
    harm: float


def spend(name: str, plan: Plan, parts: Mapping[Paths, Harms], bits_per_weight: float) -> Spent:
    """The formats with the least harm in all at no more than `bits_per_weight`.

    plan: the model in floats. Routers get 8 bits, what is no part of `parts` stays as it is.
    Raises OptionError, with the smallest budget there is, when this one is smaller.
    """
    by_path = {matrix.path: matrix for matrix in plan.matrices}
    options = [list(harms) for harms in parts.values()]
    sizes = [
        [_nbytes([by_path[path] for path in paths], stored) for stored in formats]
        for paths, formats in zip(parts, options, strict=True)
    ]
    weights = sum(matrix.weights for matrix in plan.matrices)
    fixed = _fixed_bytes(plan, parts)
    smallest = 8 * (fixed + sum(map(min, sizes))) / weights
    if bits_per_weight < smallest:
        raise OptionError(
            f"{bits_per_weight:g} bits per weight is less than this model can be stored in; "
            f"expected {smallest:.2f} or more"
        )
    harms = [list(part.values()) for part in parts.values()]
    picks = choose(sizes, harms, int(bits_per_weight * weights / 8) - fixed)
    formats = {
        paths: options[index][pick]
        for index, (paths, pick) in enumerate(zip(parts, picks, strict=True))
    }
    nbytes = fixed + sum(sizes[index][pick] for index, pick in enumerate(picks))
    harm = sum(harms[index][pick] for index, pick in enumerate(picks))
    return Spent(_recipe(name, formats, by_path), formats, 8 * nbytes / weights, harm)


def fitting(columns: int, candidates: Sequence[Quantization]) -> list[Quantization]:
    """The candidates that rows of this length can be stored in, whole groups to a row.

    Where none can, the same bits in groups of 32; where that is no help, nothing: the matrix
    stays in floating point, as in any conversion.
    """
    smaller = dict.fromkeys(replace(stored, group_size=32) for stored in candidates)
    for choices in (candidates, tuple(smaller)):
        fit = [stored for stored in choices if columns % stored.group_size == 0]
        if fit:
            return fit
    return []


def _nbytes(matrices: Sequence[Matrix], stored: Format) -> int:
    return sum(replace(matrix, stored=stored).nbytes for matrix in matrices)


def _fixed_bytes(plan: Plan, parts: Mapping[Paths, Harms]) -> int:
    """Bytes that no choice changes: norms, biases, routers."""
    chosen = {path for paths in parts for path in paths}
    return sum(
        _nbytes([matrix], ROUTER_FORMAT if _is_packed_router(matrix) else None)
        for matrix in plan.matrices
        if matrix.path not in chosen
    )


def _is_packed_router(matrix: Matrix) -> bool:
    assert ROUTER_FORMAT is not None
    fits = matrix.columns > 0 and matrix.columns % ROUTER_FORMAT.group_size == 0
    return fits and fnmatchcase(matrix.path, ROUTER)


def _recipe(
    name: str, formats: Mapping[Paths, Quantization], by_path: Mapping[str, Matrix]
) -> Recipe:
    """The commonest format by default, and a rule for every path that has another."""
    weights: dict[Quantization, int] = {}
    for paths, stored in formats.items():
        size = sum(by_path[path].weights for path in paths)
        weights[stored] = weights.get(stored, 0) + size
    default = max(weights, key=weights.__getitem__)
    others = [
        Rule(path, stored)
        for paths, stored in formats.items()
        if stored != default
        for path in paths
    ]
    routers = [Rule(ROUTER, ROUTER_FORMAT)] if any(map(_is_router, by_path)) else []
    return Recipe(name, default, (*routers, *others))


def _is_router(path: str) -> bool:
    return fnmatchcase(path, ROUTER)
