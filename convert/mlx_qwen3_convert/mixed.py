"""Mixed recipes: what a model's parts are worth, before anything is measured.

`mixed-4.5` stands for at most 4.5 bits per weight, whatever the model: the harm of every part in
every format is estimated, and the budget spent where it prevents most (budget.py). A table of
patterns could not keep that promise: a tied embedding is a quarter of the 0.6B and a fiftieth
of the 32B. The estimate is

    weights that a token meets * worth of one of them * variance of the rounding

and the worths below are the recipe, as data. `--auto` measures instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.config import ModelConfig
from mlx_qwen3.model.linear import Quantization
from mlx_qwen3_convert.budget import Harms, Paths, fitting, spend
from mlx_qwen3_convert.formats import parse_format
from mlx_qwen3_convert.plan import Matrix, Plan, make_plan, require_dtype
from mlx_qwen3_convert.readers import open_source
from mlx_qwen3_convert.readers.base import FloatType, Source
from mlx_qwen3_convert.recipes import Recipe, Rule, find_recipe

# Two bits are left to recipes that were measured.
CANDIDATES = tuple(
    stored
    for word in ("3g128", "3g64", "4g128", "4g64", "5g128", "5g64", "6g128", "6g64", "8g64")
    if (stored := parse_format(word)) is not None
)
# Per weight, beside the gate and up projections of a layer in the middle.
WORTH: Mapping[str, float] = {
    "head": 8.0,
    "embed": 2.0,
    "qkv": 3.0,
    "o": 2.0,
    "gate_up": 1.0,
    "down": 1.5,
}
# Every later layer passes on, and adds to, what the first ones get wrong.
FIRST, EARLY, LATE = 8.0, 2.0, 1.5
_SHARE = 8  # an eighth of the layers is early, an eighth late
# The variance of rounding grows with the range that a scale covers.
_GROUP_VARIANCE = {32: 0.8, 64: 1.0, 128: 1.22}
_PARTS = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
}
_NAME = re.compile(r"mixed-(\d+(?:\.\d+)?)")
FLOAT = Recipe("float", None)


@dataclass(frozen=True)
class Mixed:
    """A recipe that is filled in for each model. rules: a user's, over what is chosen."""

    name: str
    bits_per_weight: float
    rules: tuple[Rule, ...] = ()

    def with_rules(self, words: Mapping[str, str]) -> Mixed:
        """As Recipe.with_rules."""
        added = tuple(Rule(pattern, parse_format(word)) for pattern, word in words.items())
        return replace(self, rules=self.rules + added)

    def for_source(self, source: Source, dtype: FloatType) -> Recipe:
        """The recipe for this model. Raises OptionError when the budget is too small for it."""
        plan = make_plan(source, recipe=FLOAT, fallback=FLOAT, dtype=dtype)
        config = ModelConfig.from_dict(source.config)
        recipe = mixed_recipe(plan, config, self.bits_per_weight)
        return replace(recipe, name=self.name, rules=recipe.rules + self.rules)


AnyRecipe = Recipe | Mixed


def find_any_recipe(name: str) -> AnyRecipe:
    """As find_recipe, and mixed-BITS. Raises OptionError naming both."""
    found = _NAME.fullmatch(name)
    if found is not None:
        return Mixed(name, float(found[1]))
    try:
        return find_recipe(name)
    except OptionError as exc:
        hint = "" if Path(name).suffix == ".json" else "; or mixed-BITS, such as mixed-4.5"
        raise OptionError(f"{exc}{hint}") from exc


@dataclass(frozen=True)
class Part:
    """Matrices that share a format. layer: None outside of the layers."""

    kind: str
    layer: int | None


def plan_for(folder: Path, recipe: AnyRecipe, *, dtype: str | None = None) -> Plan:
    """What a conversion by this recipe would write. Reads headers only; raises as `convert`."""
    source = open_source(folder)
    try:
        kind = require_dtype(dtype or str(source.config.get("torch_dtype") or "bfloat16"))
        fixed = recipe.for_source(source, kind) if isinstance(recipe, Mixed) else recipe
        return make_plan(source, recipe=fixed, fallback=fixed, dtype=kind)
    finally:
        source.close()


def mixed_recipe(plan: Plan, config: ModelConfig, bits_per_weight: float) -> Recipe:
    """The mixed recipe of a model. plan: its conversion to floats.

    Raises OptionError when the budget is too small.
    """
    matrices: dict[Part, list[Matrix]] = {}
    for matrix in plan.matrices:
        part = part_of(matrix.path)
        if part is not None:
            matrices.setdefault(part, []).append(matrix)
    parts: dict[Paths, Harms] = {}
    for part, members in matrices.items():
        formats = fitting(members[0].columns, CANDIDATES)
        if formats:
            worth = _worth(part, config) * sum(_met(matrix, config) for matrix in members)
            harms = {stored: worth * variance(stored) for stored in formats}
            parts[tuple(matrix.path for matrix in members)] = harms
    return spend(f"mixed-{bits_per_weight:g}", plan, parts, bits_per_weight).recipe


def part_of(path: str) -> Part | None:
    """Which part a recipe path belongs to; None for routers, norms and biases."""
    if path == "lm_head":
        return Part("head", None)
    if path == "model.embed_tokens":
        return Part("embed", None)
    words = path.split(".")
    kind = _PARTS.get(words[-1])
    return None if kind is None else Part(kind, int(words[2]))


def variance(stored: Quantization) -> float:
    """Of rounding to this format, up to a factor: the square of a step within its range."""
    return _GROUP_VARIANCE[stored.group_size] / float(2**stored.bits - 1) ** 2


def _met(matrix: Matrix, config: ModelConfig) -> float:
    """How many of its weights one token is multiplied with; an embedding's row counts whole."""
    if len(matrix.pieces) == 1:
        return matrix.weights
    return matrix.weights * config.num_experts_per_tok / len(matrix.pieces)


def _worth(part: Part, config: ModelConfig) -> float:
    if part.layer is None:
        tied = part.kind == "embed" and config.tie_word_embeddings
        return WORTH["head" if tied else part.kind]
    layers = config.num_hidden_layers
    if part.layer == 0:
        return FIRST * WORTH[part.kind]
    if part.layer < layers / _SHARE:
        return EARLY * WORTH[part.kind]
    if part.layer >= layers - layers / _SHARE:
        return LATE * WORTH[part.kind]
    return WORTH[part.kind]
