"""Schemas that require themselves: no finite JSON satisfies them, and a grammar does not notice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from mlx_qwen3.text.tool_calls import referred

Schema = Mapping[str, Any]


def is_finite(schema: Any, root: Schema) -> bool:
    """Whether some finite value can have this schema's structure.

    References are found finite one after the other, each from those before it; what is left when
    no more can be found requires itself. A schema may be no schema at all: that is for others to
    refuse.
    """
    finite: set[str] = set()
    open_references = {*_references(schema), *_references(root)}
    while new := {one for one in open_references if _holds(referred(one, root), finite)}:
        finite |= new
        open_references -= new
    return _holds(schema, finite)


def _references(value: Any) -> Iterator[str]:
    """Every reference in a JSON value."""
    if isinstance(value, Mapping):
        if isinstance(reference := value.get("$ref"), str):
            yield reference
        value = list(value.values())
    for one in _listed(value):
        yield from _references(one)


def _holds(schema: Any, finite: Collection[str]) -> bool:
    """Whether it is finite if these references are, and no others."""
    if not isinstance(schema, Mapping):
        return True
    return all(check(schema, finite) for check in _CHECKS)


def _reference(schema: Schema, finite: Collection[str]) -> bool:
    reference = schema.get("$ref")
    return not isinstance(reference, str) or reference in finite


def _choices(schema: Schema, finite: Collection[str]) -> bool:
    choices = [_listed(schema.get(name)) for name in ("anyOf", "oneOf")]
    return all(not options or any(_holds(one, finite) for one in options) for options in choices)


def _all_of(schema: Schema, finite: Collection[str]) -> bool:
    return all(_holds(one, finite) for one in _listed(schema.get("allOf")))


def _object(schema: Schema, finite: Collection[str]) -> bool:
    properties = schema.get("properties")
    if schema.get("type", "object") != "object" or not isinstance(properties, Mapping):
        return True
    required = [name for name in _listed(schema.get("required")) if isinstance(name, str)]
    return all(_holds(properties.get(name), finite) for name in required)


def _array(schema: Schema, finite: Collection[str]) -> bool:
    least = schema.get("minItems", 0)
    if schema.get("type", "array") != "array" or not isinstance(least, int):
        return True
    first = _listed(schema.get("prefixItems"))[: max(0, least)]
    rest = [schema.get("items")] if least > len(first) else []
    return all(_holds(one, finite) for one in (*first, *rest))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


_CHECKS: tuple[Callable[[Schema, Collection[str]], bool], ...] = (
    _reference,
    _choices,
    _all_of,
    _object,
    _array,
)
