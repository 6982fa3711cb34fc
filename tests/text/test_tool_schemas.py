"""Python functions as tools: signature, type hints and docstring become the schema."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Optional, TypedDict, Union

import pydantic
import pytest

from mlx_qwen3.errors import OptionError
from mlx_qwen3.text.docstrings import read_docstring
from mlx_qwen3.text.tool_schemas import as_tools, tool_schema, type_schema


class Unit(enum.Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


class Place(TypedDict):
    """A place.

    Args:
        city: Its name.
    """

    city: str
    country: str | None


@dataclasses.dataclass
class Range:
    low: float
    high: float = 1.0
    steps: list[int] = dataclasses.field(default_factory=list)


class Leaf(pydantic.BaseModel):
    size: int


class Tree(pydantic.BaseModel):
    leaves: list[Leaf]


def google(city: str, unit: Unit = Unit.CELSIUS, days: int = 3) -> str:
    """Get the weather.

    Of any city, for some
    days.

    Args:
        city (str): Where it is: name
            and country.
        unit: How to measure.
        **days: How many.

    Returns:
        A text.
    """
    return ""


def numpy_style(city: str, days: int = 3) -> str:
    """Get the weather.

    Parameters
    ----------
    city : str
        Where it is: name
        and country.
    days : int, optional
        How many.

    Returns
    -------
    str
        A text.
    """
    return ""


def sphinx(city: str, days: int = 3) -> str:
    """Get the weather.

    :param str city: Where it is: name
        and country.
    :param days: How many.
    :type days: int
    :returns: A text.
    """
    return ""


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = tool_schema(function)["function"]["parameters"]["properties"]
    return found


def test_a_function_becomes_a_tool() -> None:
    assert tool_schema(google) == {
        "type": "function",
        "function": {
            "name": "google",
            "description": "Get the weather.\n\nOf any city, for some days.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where it is: name and country."},
                    "unit": {
                        "type": "string",
                        "enum": ["C", "F"],
                        "description": "How to measure.",
                        "default": "C",
                    },
                    "days": {"type": "integer", "description": "How many.", "default": 3},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize("function", [numpy_style, sphinx])
def test_every_style_of_docstring(function: Callable[..., Any]) -> None:
    assert tool_schema(function)["function"]["description"] == "Get the weather."
    assert properties(function)["city"]["description"] == "Where it is: name and country."
    assert properties(function)["days"]["description"] == "How many."


@pytest.mark.parametrize(
    ("docstring", "summary"),
    [
        (None, ""),
        ("", ""),
        ("Only this.", "Only this."),
        ("One\ntwo.\n\nThree.", "One two.\n\nThree."),
        ("Does it.\n\nReturns:\n    A thing.", "Does it."),
        ("Does it.\n\nReturns\n-------\nint", "Does it."),
        ("Note: this matters.", "Note: this matters."),
    ],
)
def test_what_follows_no_style_is_the_summary(docstring: str | None, summary: str) -> None:
    assert read_docstring(docstring).summary == summary
    assert read_docstring(docstring).arguments == {}


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (float, {"type": "number"}),
        (None, {"type": "null"}),
        (Any, {}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (Sequence[bool], {"type": "array", "items": {"type": "boolean"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (dict, {"type": "object"}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Mapping[str, Any], {"type": "object"}),
        (Optional[int], {"type": ["integer", "null"]}),  # noqa: UP045  # a spelling users have
        (int | None, {"type": ["integer", "null"]}),
        (
            Union[int, list[str]],  # noqa: UP007
            {"anyOf": [{"type": "integer"}, type_schema(list[str])]},
        ),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (Unit, {"type": "string", "enum": ["C", "F"]}),
        (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
        (
            Place,
            {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name."},
                    "country": {"type": ["string", "null"]},
                },
                "required": ["city", "country"],
                "additionalProperties": False,
            },
        ),
        (
            Range,
            {
                "type": "object",
                "properties": {
                    "low": {"type": "number"},
                    "high": {"type": "number"},
                    "steps": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["low"],
                "additionalProperties": False,
            },
        ),
    ],
    ids=str,
)
def test_type_hints(hint: Any, schema: dict[str, Any]) -> None:
    assert type_schema(hint) == schema


def test_definitions_move_to_the_root() -> None:
    def grow(trees: list[Tree]) -> None: ...

    parameters = tool_schema(grow)["function"]["parameters"]
    assert set(parameters["$defs"]) == {"Leaf"}
    assert "$defs" not in parameters["properties"]["trees"]["items"]


def test_methods_and_objects_that_can_be_called() -> None:
    class Clock:
        def now(self, zone: str) -> str:
            """The time."""
            return zone

        def __call__(self, *, zone: str) -> str:
            """The time."""
            return zone

    for tool, name in ((Clock().now, "now"), (Clock(), "Clock")):
        function = tool_schema(tool)["function"]
        assert (function["name"], function["description"]) == (name, "The time.")
        assert function["parameters"]["properties"] == {"zone": {"type": "string"}}


def test_without_hints_anything_goes() -> None:
    def free(a, b=object()):  # type: ignore[no-untyped-def]  # noqa: B008
        return a, b

    parameters = tool_schema(free)["function"]["parameters"]
    assert parameters["properties"] == {"a": {}, "b": {}}
    assert parameters["required"] == ["a"]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda *values: None, "argument \\*values cannot be given by name"),
        (lambda **values: None, "argument \\*\\*values cannot be given by name"),
        (len, "argument obj cannot be given by name"),
    ],
)
def test_what_cannot_be_called_by_name_is_refused(function: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        tool_schema(function)


def test_a_type_without_a_schema_is_refused() -> None:
    def odd(value: complex) -> None: ...

    with pytest.raises(OptionError, match=r"function odd cannot be a tool: the type .*complex"):
        tool_schema(odd)


def test_json_forms_stay() -> None:
    bare = {"name": "f", "parameters": {}}
    wrapped = {"type": "function", "function": bare}
    assert as_tools([bare, wrapped]) == [wrapped, wrapped]
    assert as_tools(None) == []
    assert as_tools([5]) == [5]  # type: ignore[list-item]  # for the template to refuse
