"""Tools whose parameters are no schema: refused where they should be enforced, else any object."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_qwen3.errors import SchemaError
from mlx_qwen3.generation.grammars import call_rules
from mlx_qwen3.text.template import CallForm

WRONG = [
    {"properties": 5},
    {"properties": ["a"]},
    {"properties": {"a": {"enum": 5}}},
]


@pytest.mark.parametrize("parameters", WRONG, ids=str)
@pytest.mark.parametrize("form", ["json", "xml"])
def test_no_schema_is_refused_of_strict_tools_only(
    parameters: dict[str, Any], form: CallForm
) -> None:
    tool = {"name": "f", "parameters": parameters}
    assert "call_0" in call_rules([tool], form)
    with pytest.raises(SchemaError):
        call_rules([{**tool, "strict": True}], form)


@pytest.mark.parametrize("start", ["", "x"])
def test_a_panic_of_the_library_is_a_refusal(start: str) -> None:
    """It shows a wrong value up to its 100th byte, and panics where that is within a letter."""
    tool = {"name": "f", "parameters": {"required": {"a": start + "é" * 80}}, "strict": True}
    with pytest.raises(SchemaError):
        call_rules([tool], "json")
