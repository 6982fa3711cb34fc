"""Which matrix gets which format: recipes as data.

A recipe is a default format and rules; a rule is a pattern over module paths and a format, and
the last rule that matches a path wins. As a file (TOML is not needed, JSON reads everywhere):

    {"name": "mine", "default": "4", "rules": {"*.mlp.down_proj": "6", "lm_head": "8"}}

Paths are those of the published checkpoint without ".weight": model.layers.3.self_attn.v_proj,
model.embed_tokens, lm_head. The experts of a layer share one path:
model.layers.3.mlp.experts.down_proj. A pattern may leave out the leading "model.".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mlx_qwen3.errors import OptionError
from mlx_qwen3_convert.formats import SCALED, Format, affine, describe, parse_format

ROUTER = "*.mlp.gate"
_ROUTER_FORMAT = "8g64"  # a router picks experts: an error there is no small error
# Parts that the runtime multiplies together, so that they must be packed alike.
FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.experts.gate_proj", "mlp.experts.up_proj"),
)


@dataclass(frozen=True)
class Rule:
    """Paths that match `pattern` are stored as `stored`."""

    pattern: str
    stored: Format

    def matches(self, path: str) -> bool:
        """Whether the rule speaks of this path, with or without its leading "model."."""
        return fnmatchcase(path, self.pattern) or fnmatchcase(
            path.removeprefix("model."), self.pattern
        )


@dataclass(frozen=True)
class Recipe:
    """A default and its exceptions."""

    name: str
    default: Format
    rules: tuple[Rule, ...] = ()

    def format_of(self, path: str) -> Format:
        """How the matrix of this path is stored."""
        stored = self.default
        for rule in self.rules:
            if rule.matches(path):
                stored = rule.stored
        return stored

    def with_rules(self, words: Mapping[str, str]) -> Recipe:
        """The recipe with more rules, pattern -> format word, that win over its own."""
        added = tuple(Rule(pattern, parse_format(word)) for pattern, word in words.items())
        return Recipe(self.name, self.default, self.rules + added)

    def check(self, paths: Sequence[str], *, required: Iterable[Rule] = ()) -> None:
        """Refuse rules of `required` that match nothing, and fused parts packed differently.

        Raises OptionError naming the pattern or the layer.
        """
        for rule in required:
            if not any(rule.matches(path) for path in paths):
                raise OptionError(
                    f"pattern {rule.pattern!r} matches no matrix; expected a path such as "
                    f"{paths[len(paths) // 2]} with * for any part of it"
                )
        known = set(paths)
        for path in paths:
            for parts in FUSED:
                if path.endswith("." + parts[0]):
                    prefix = path.removesuffix(parts[0])
                    self._check_alike([prefix + part for part in parts if prefix + part in known])

    def as_json(self) -> dict[str, object]:
        """As a recipe file has it."""
        rules = {rule.pattern: describe(rule.stored) for rule in self.rules}
        return {"name": self.name, "default": describe(self.default), "rules": rules}

    def _check_alike(self, paths: list[str]) -> None:
        formats = {path: self.format_of(path) for path in paths}
        if len(set(formats.values())) > 1:
            said = ", ".join(f"{path} {describe(stored)}" for path, stored in formats.items())
            raise OptionError(f"these are multiplied together and must be packed alike: {said}")


def _recipe(name: str, default: str, rules: Mapping[str, str] | None = None) -> Recipe:
    return Recipe(name, parse_format(default)).with_rules({ROUTER: _ROUTER_FORMAT, **(rules or {})})


RECIPES: Mapping[str, Recipe] = {
    "bf16": Recipe("bf16", None),
    **{f"{bits}bit": _recipe(f"{bits}bit", str(bits)) for bits in (8, 6, 5, 4, 3)},
    **{name: _recipe(name, name) for name in SCALED},
}
DEFAULT = "4bit"


def find_recipe(name: str) -> Recipe:
    """A recipe by name, or from a JSON file. Raises OptionError with the names there are."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return read_recipe(path)
    raise OptionError(
        f"no recipe {name!r}; expected one of {', '.join(RECIPES)}, or a recipe file (.json)"
    )


def read_recipe(file: Path) -> Recipe:
    """A recipe file. Raises OptionError naming the file and what is wrong with it."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        words = {str(pattern): str(word) for pattern, word in raw.get("rules", {}).items()}
        recipe = Recipe(str(raw.get("name", file.stem)), parse_format(str(raw["default"])))
        return recipe.with_rules(words)
    except OptionError as exc:
        raise OptionError(f"{file}: {exc}") from exc
    except (OSError, ValueError, KeyError, AttributeError) as exc:
        raise OptionError(
            f'{file}: not a recipe ({exc!r}); expected {{"default": "4", "rules": {{...}}}}'
        ) from exc


def uniform(bits: int, group_size: int) -> Recipe:
    """Every matrix alike, the router at 8 bits or more."""
    stored = affine(bits, group_size)
    recipe = Recipe(f"{bits}bit" if group_size == 64 else f"{bits}bit-g{group_size}", stored)
    return recipe.with_rules({ROUTER: _ROUTER_FORMAT})
