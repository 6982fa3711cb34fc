"""Tools as a chat template wants them: from Python functions, or from JSON in one of its forms."""

import collections.abc
import dataclasses
import enum
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

from mlx_qwen3.errors import OptionError
from mlx_qwen3.text.docstrings import read_docstring

# A JSON schema in OpenAI's form, bare or wrapped, or a function.
Tool = Mapping[str, Any] | Callable[..., Any]


def as_tools(tools: Sequence[Tool] | None) -> list[Mapping[str, Any]]:
    """Tools in OpenAI's form; a bare {"name", "parameters"} is wrapped into it.

    What is neither mapping nor function is left for the template to refuse.
    Raises OptionError for a function that cannot be called by named JSON values.
    """
    return [_as_tool(tool) for tool in tools or ()]


def _as_tool(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return tool if "function" in tool else {"type": "function", "function": tool}
    return tool_schema(tool) if callable(tool) else tool


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function in OpenAI's form.

    Its docstring describes it and its arguments (Google, NumPy or Sphinx style), its type hints
    give their types: str, int, float, bool, None, list, tuple, set, dict, Literal, Enum, Optional
    and unions, Annotated (a text in it is the description), dataclasses, TypedDict and pydantic
    models. Without a hint anything is allowed. Arguments without a default are required.
    Raises OptionError for positional-only and variable arguments, and for other types.
    """
    name = getattr(function, "__name__", type(function).__name__)
    routine: Any = function if inspect.isroutine(function) else type(function).__call__
    described = read_docstring(inspect.getdoc(routine))
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = typing.get_type_hints(routine, include_extras=True)
        properties = {
            parameter.name: _property(parameter, hints, described.arguments)
            for parameter in parameters
        }
    except (ValueError, TypeError, NameError, RecursionError) as exc:
        raise OptionError(f"function {name} cannot be a tool: {exc}") from exc
    definitions: dict[str, Any] = {}
    schema: dict[str, Any] = {"type": "object", "properties": _hoisted(properties, definitions)}
    schema["required"] = [p.name for p in parameters if p.default is p.empty]
    schema["additionalProperties"] = False
    schema |= {"$defs": definitions} if definitions else {}
    return {
        "type": "function",
        "function": {"name": name, "description": described.summary, "parameters": schema},
    }


def _hoisted(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema, its definitions moved to where a $ref looks for them: the root."""
    if isinstance(schema, list):
        return [_hoisted(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    definitions |= schema.get("$defs", {})
    return {key: _hoisted(one, definitions) for key, one in schema.items() if key != "$defs"}


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _property(
    parameter: inspect.Parameter, hints: Mapping[str, Any], described: Mapping[str, str]
) -> dict[str, Any]:
    if parameter.kind not in _BY_NAME:
        raise TypeError(f"argument {parameter} cannot be given by name")
    schema = dict(type_schema(hints.get(parameter.name, Any)))
    if parameter.name in described:
        schema["description"] = described[parameter.name]
    if parameter.default is not parameter.empty:
        default = _plain_default(parameter.default)
        schema |= {} if default is _NO_DEFAULT else {"default": default}
    return schema


_NO_DEFAULT = object()


def _plain_default(value: Any) -> Any:
    """A default as JSON has it; one that JSON has not is left out."""
    value = value.value if isinstance(value, enum.Enum) else value
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return _NO_DEFAULT


def type_schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type hint. Raises TypeError for one that has none."""
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _GENERIC or hint in _GENERIC:
        return _GENERIC[origin if origin in _GENERIC else hint](arguments)
    if isinstance(hint, type):
        for fits, describe in _CLASSES:
            if fits(hint):
                return describe(hint)
    raise TypeError(f"the type {hint!r} has no JSON schema")


_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}


def _union(arguments: tuple[Any, ...]) -> dict[str, Any]:
    options = [type_schema(argument) for argument in arguments]
    if all(set(option) == {"type"} for option in options):
        return {"type": [option["type"] for option in options]}
    return {"anyOf": options}


def _annotated(arguments: tuple[Any, ...]) -> dict[str, Any]:
    schema = type_schema(arguments[0])
    texts = [one for one in arguments[1:] if isinstance(one, str)]
    return {**schema, "description": texts[0]} if texts else schema


def _values(values: Sequence[Any]) -> dict[str, Any]:
    """An enumeration, with the type its values share."""
    kinds = {_PLAIN[type(value)]["type"] for value in values if type(value) in _PLAIN}
    shared = {"type": kinds.pop()} if len(kinds) == 1 else {}
    return {**shared, "enum": list(values)}


def _list(arguments: tuple[Any, ...]) -> dict[str, Any]:
    items = type_schema(arguments[0]) if arguments else {}
    return {"type": "array", "items": items} if items else {"type": "array"}


def _tuple(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if not arguments or arguments[-1] is ...:
        return _list(arguments[:1])
    size = len(arguments)
    items = [type_schema(argument) for argument in arguments]
    return {"type": "array", "prefixItems": items, "minItems": size, "maxItems": size}


def _dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    values = type_schema(arguments[1]) if len(arguments) == 2 else {}
    return {"type": "object", "additionalProperties": values} if values else {"type": "object"}


_GENERIC: dict[Any, Callable[[tuple[Any, ...]], dict[str, Any]]] = {
    Union: _union,
    types.UnionType: _union,
    typing.Annotated: _annotated,
    Literal: _values,
    **dict.fromkeys((list, set, frozenset, collections.abc.Sequence, collections.abc.Set), _list),
    **dict.fromkeys((collections.abc.Iterable, collections.abc.Collection), _list),
    tuple: _tuple,
    **dict.fromkeys((dict, collections.abc.Mapping, collections.abc.MutableMapping), _dict),
}


def _enum(hint: type[enum.Enum]) -> dict[str, Any]:
    return _values([member.value for member in hint])


def _object(hint: Any, required: Sequence[str]) -> dict[str, Any]:
    described = read_docstring(hint.__doc__).arguments
    properties = {}
    for name, kind in typing.get_type_hints(hint, include_extras=True).items():
        schema = type_schema(_without_required(kind))
        properties[name] = schema | ({"description": described[name]} if name in described else {})
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _without_required(hint: Any) -> Any:
    """A TypedDict's Required[...] and NotRequired[...] say nothing about the type."""
    marked = str(typing.get_origin(hint)).endswith(("Required", "NotRequired"))
    return typing.get_args(hint)[0] if marked else hint


def _dataclass(hint: Any) -> dict[str, Any]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(hint)
    needed = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    return _object(hint, needed)


def _typed_dict(hint: Any) -> dict[str, Any]:
    return _object(hint, [name for name in hint.__annotations__ if name in hint.__required_keys__])


def _pydantic(hint: Any) -> dict[str, Any]:
    schema: dict[str, Any] = hint.model_json_schema()
    return schema


_CLASSES: tuple[tuple[Callable[[type], bool], Callable[[Any], dict[str, Any]]], ...] = (
    (lambda hint: issubclass(hint, enum.Enum), _enum),
    (lambda hint: hasattr(hint, "model_json_schema"), _pydantic),
    (dataclasses.is_dataclass, _dataclass),
    (lambda hint: hasattr(hint, "__required_keys__"), _typed_dict),
)
