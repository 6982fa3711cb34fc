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
