"""Random JSON schemas of what llguidance enforces: nested, bounded, and satisfiable."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]

WORDS = ["name", "größe", "数量", "a b", 'quo"te', "slash\\", "x", "emoji😀", "items", "id", "𝒜"]
# Each with a length it can have: the model writes no more than it must.
PATTERNS = ["^[a-z]{2,5}$", "^(ja|nein|да)$", "^#[0-9a-f]{3}$", "^[äöü]{1,3}$", "^\\d{4}-\\d{2}$"]
FORMATS = ["date", "ipv4", "uuid", "email"]


def random_schema(rng: Random) -> Schema:
    """A schema with an object, an array or a choice at its root, and definitions."""
    definitions = {name: _leaf(rng) for name in ("first", "zweite")}
    root = rng.choice([_object, _object, _object, _array, _any_of])(rng, 3)
    return {**root, "$defs": definitions}


def _any(rng: Random, depth: int) -> Schema:
    kinds = [_object, _array, _any_of, _reference] if depth > 0 else [_reference]
    return rng.choice(kinds)(rng, depth - 1) if rng.random() < 0.45 else _leaf(rng)


def _leaf(rng: Random) -> Schema:
    return rng.choice(_LEAVES)(rng)


def _object(rng: Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randint(0, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
    }
    if rng.random() < 0.8:
        schema["additionalProperties"] = False
    else:
        schema["additionalProperties"] = {"type": "boolean"}
    return schema


def _array(rng: Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    schema: Schema = {"type": "array", "minItems": least, "maxItems": least + rng.randint(0, 2)}
    if rng.random() < 0.2:
        items = [_any(rng, depth - 1) for _ in range(least + 1)]
        return {**schema, "prefixItems": items, "items": _leaf(rng)}
    return {**schema, "items": _any(rng, depth - 1)}


def _any_of(rng: Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth - 1) for _ in range(rng.randint(1, 3))]}


def _reference(rng: Random, depth: int) -> Schema:
    return {"$ref": f"#/$defs/{rng.choice(['first', 'zweite'])}"}


def _text(rng: Random) -> Schema:
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 5)}


def _integer(rng: Random) -> Schema:
    low = rng.randint(-1000, 1000)
    bounds = [
        {"minimum": low, "maximum": low + rng.randint(0, 500)},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 2 + rng.randint(0, 50)},
        {"minimum": 0, "maximum": 9},
    ]
    return {"type": "integer", **rng.choice(bounds)}


def _number(rng: Random) -> Schema:
    low = rng.randint(-50, 50) / 4
    return {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 20)}


def _values(rng: Random) -> list[Any]:
    values = [
        "rot",
        "grün",
        "日本",
        'a"b',
        "\n",
        1,
        -2.5,
        True,
        None,
        "",
        "<tool_call>",
        "</think>",
    ]
    return rng.sample(values, rng.randint(1, 4))


_LEAVES: list[Callable[[Random], Schema]] = [
    _text,
    _text,
    _integer,
    _number,
    lambda rng: {"enum": _values(rng)},
    lambda rng: {"const": _values(rng)[0]},
    lambda rng: {"type": "boolean"},
    lambda rng: {"type": ["null", "integer"], "minimum": 3, "maximum": 12},
    lambda rng: {"type": "string", "pattern": rng.choice(PATTERNS)},
    lambda rng: {"type": "string", "format": rng.choice(FORMATS)},
]
