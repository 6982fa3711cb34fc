"""Schemas that require themselves: no finite JSON satisfies them, and a grammar does not notice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlx_qwen3.text.tool_calls import referred

Schema = Mapping[str, Any]


def is_finite(schema: Any, root: Schema, within: tuple[str, ...] = ()) -> bool:
    """Whether some finite value can have this schema's structure.

    within: the definitions it is part of. The smallest value holds none of them again.
    """
    if not isinstance(schema, Mapping):
        return True
    return all(check(schema, root, within) for check in _CHECKS)


def _reference(schema: Schema, root: Schema, within: tuple[str, ...]) -> bool:
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return True
    if reference in within:
        return False
    return is_finite(referred(reference, root), root, (*within, reference))


def _choices(schema: Schema, root: Schema, within: tuple[str, ...]) -> bool:
    choices = [schema.get(name) or () for name in ("anyOf", "oneOf")]
    return all(
        not options or any(is_finite(one, root, within) for one in options) for options in choices
    )


def _all_of(schema: Schema, root: Schema, within: tuple[str, ...]) -> bool:
    return all(is_finite(one, root, within) for one in schema.get("allOf") or ())


def _object(schema: Schema, root: Schema, within: tuple[str, ...]) -> bool:
    properties = schema.get("properties")
    if schema.get("type", "object") != "object" or not isinstance(properties, Mapping):
        return True
    required = schema.get("required") or ()
    return all(is_finite(properties.get(name), root, within) for name in required)


def _array(schema: Schema, root: Schema, within: tuple[str, ...]) -> bool:
    least = schema.get("minItems", 0)
    if schema.get("type", "array") != "array" or not isinstance(least, int):
        return True
    first = list(schema.get("prefixItems") or ())[:least]
    rest = [schema.get("items")] if least > len(first) else []
    return all(is_finite(one, root, within) for one in (*first, *rest))


_CHECKS: tuple[Callable[[Schema, Schema, tuple[str, ...]], bool], ...] = (
    _reference,
    _choices,
    _all_of,
    _object,
    _array,
)
