"""Schemas that no finite value has."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_qwen3.generation.recursion import is_finite


def node(**more: Any) -> dict[str, Any]:
    """A schema that is its own definition "node"."""
    return {"$defs": {"node": more}, "$ref": "#/$defs/node"}


SELF = {"$ref": "#/$defs/node"}


@pytest.mark.parametrize(
    ("schema", "finite"),
    [
        ({}, True),
        (node(type="object", properties={"next": SELF}), True),
        (node(type="object", properties={"next": SELF}, required=["next"]), False),
        (node(type="object", properties={"next": SELF}, required=["other"]), True),
        (node(type="object", properties={"a": {"anyOf": [SELF, {"type": "null"}]}}), True),
        (node(anyOf=[SELF, {"type": "null"}]), True),
        (node(anyOf=[SELF, {"type": "array", "items": SELF, "minItems": 1}]), False),
        (node(type="array", items=SELF), True),
        (node(type="array", items=SELF, minItems=1), False),
        (node(type="array", prefixItems=[{"type": "null"}], items=SELF, minItems=1), True),
        (node(allOf=[{"type": "object"}, SELF]), False),
        (node(type=["object", "null"], properties={"next": SELF}, required=["next"]), True),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}, True),
    ],
    ids=str,
)
def test_is_finite(schema: dict[str, Any], finite: bool) -> None:
    assert is_finite(schema, schema) == finite


def test_many_that_require_each_other() -> None:
    """As many ways through them as 24 factorial: each reference is looked at a few times only."""
    names = [f"#/$defs/d{number}" for number in range(24)]
    all_of_them = {"anyOf": [{"$ref": name} for name in names]}
    definitions: dict[str, Any] = {f"d{number}": all_of_them for number in range(24)}
    schema = {"$defs": definitions, "$ref": "#/$defs/d0"}
    assert not is_finite(schema, schema)
    definitions["d23"] = {"type": "null"}
    assert is_finite(schema, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {}, "required": [[], {}, 5]},
        {"type": "object", "properties": {}, "required": 5},
        {"anyOf": 5, "allOf": "text", "$ref": 5},
        {"type": "array", "minItems": -1, "prefixItems": 5},
        {"anyOf": {"a": 1}, "properties": []},
    ],
    ids=str,
)
def test_what_is_no_schema_is_left_to_others(schema: dict[str, Any]) -> None:
    assert is_finite(schema, schema)
