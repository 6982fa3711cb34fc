"""Calls read beside schemas that are none."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from mlx_qwen3.text.tool_calls import read_call


@pytest.mark.parametrize("wrong", [5, "text", True, {"a": 1}, [5, {}]], ids=str)
@pytest.mark.parametrize("field", ["type", "enum", "anyOf", "$ref"])
def test_a_schema_may_be_anything(field: str, wrong: Any) -> None:
    properties = {"a": {field: wrong}}
    tool = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    call = read_call("<function=f>\n<parameter=a>\nx\n</parameter>\n</function>", [tool])
    assert (call.error, call.arguments) == (None, {"a": "x"})


class Held:
    """Something large that a caller works with."""


@pytest.mark.parametrize("truncated", [True, False])
def test_a_broken_call_holds_none_of_its_callers(truncated: bool) -> None:
    """An exception kept under a name of its own did, with everything that ran beside it."""

    def caller() -> weakref.ref[Held]:
        held = Held()
        assert read_call('<tool_call>\n{"name": "f", "argu', truncated=truncated).error
        return weakref.ref(held)

    gc.disable()
    try:
        assert caller()() is None
    finally:
        gc.enable()
