"""What may be asked of an answer, as grammars that llguidance reads.

A grammar is a JSON text {"grammars": [...]}: the first is where matching starts; others have
names. Tool calls are written in Lark, with the schemas of their arguments inside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_qwen3.errors import SchemaError
from mlx_qwen3.generation.constraints import check_grammar
from mlx_qwen3.text.template import CallForm
from mlx_qwen3.text.tool_calls import (
    CLOSE,
    FUNCTION,
    FUNCTION_END,
    OPEN,
    PARAMETER_END,
    plain_schemas,
)

Schema = Mapping[str, Any]
Tool = Mapping[str, Any]  # the "function" object of OpenAI's form
_Write = Callable[[int, str, Schema], list[str]]

# What stands between the parts of a JSON text.
WHITESPACE: dict[str, dict[str, Any]] = {
    "compact": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},
    "spaced": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    "free": {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\n]{0,20}"},
}


def json_part(schema: Schema, whitespace: str) -> dict[str, Any]:
    """A grammar of JSON texts that satisfy a schema."""
    return {"json_schema": {**schema, "x-guidance": WHITESPACE[whitespace]}}


def regex_part(pattern: str) -> dict[str, Any]:
    """A grammar of the texts that a regular expression matches as a whole."""
    return {"lark_grammar": f"start: {regex(pattern)}"}


def lark_part(source: str) -> dict[str, Any]:
    """A grammar in llguidance's dialect of Lark."""
    return {"lark_grammar": source}


def answer_grammar(part: Mapping[str, Any], calls: str = "") -> str:
    """The grammar of an answer: `part`, or, where these Lark rules are given, tool calls."""
    if not calls:
        return json.dumps({"grammars": [part]})
    start = {"lark_grammar": f"start: calls | @answer\n{calls}"}
    return json.dumps({"grammars": [start, {"name": "answer", **part}]})


def calls_grammar(calls: str) -> str:
    """The grammar of an answer that is nothing but tool calls (Lark rules)."""
    return _lark(f"start: calls\n{calls}")


def call_rules(
    tools: Sequence[Tool], form: CallForm, *, strict: bool = False, many: bool = True
) -> str:
    """Lark rules for `calls`: one call, or several in a row, of these tools.

    Arguments satisfy their schema; where that cannot be enforced and the tool is not strict, any
    object will do. Raises SchemaError for a strict tool.
    """
    more = r' ("\n" call)*' if many else ""
    call = f"call: {literal(f'{OPEN}{_LINE}{_LEAD[form]}')} ({_names(tools)}) {_AFTER}"
    return "\n".join([f"calls: call{more}", call, *_bodies(tools, form, strict)])


def call_triggers(tools: Sequence[Tool], form: CallForm, *, strict: bool) -> dict[str, str]:
    """Tag -> the grammar of what follows it, for calls that a model may make or not."""
    names, bodies = _names(tools), "\n".join(_bodies(tools, form, strict))
    after = f"start: {literal(_LINE + _LEAD[form])} ({names}) {_AFTER}\n{bodies}"
    triggers = {OPEN: _lark(after)}
    if form == "xml":  # Qwen3-Coder leaves the outer tag away now and then
        triggers[FUNCTION] = _lark(f"start: {names}\n{bodies}")
    return triggers


def regex(pattern: str) -> str:
    """A regular expression as Lark writes it: between slashes, in one line."""
    escaped = re.sub(r"(?s)\\.|/", lambda found: _SLASH.get(found[0], found[0]), pattern)
    return "/" + escaped.replace("\n", r"\n") + "/"


_SLASH = {"/": r"\/", "\\\n": r"\n"}


def literal(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


_LINE = "\n"
_LEAD: dict[CallForm, str] = {"json": "", "xml": FUNCTION}
_AFTER = literal(_LINE + CLOSE)


def _lark(source: str) -> str:
    return json.dumps({"grammars": [lark_part(source)]})


def _names(tools: Sequence[Tool]) -> str:
    return " | ".join(f"call_{place}" for place in range(len(tools)))


def _bodies(tools: Sequence[Tool], form: CallForm, strict: bool) -> list[str]:
    """The rules call_0, call_1, ...: a call without its tags."""
    return [rule for place, tool in enumerate(tools) for rule in _body(place, tool, form, strict)]


def _body(place: int, tool: Tool, form: CallForm, strict: bool) -> list[str]:
    write, name = _BODIES[form], tool["name"]
    try:
        body = _written(write, place, name, tool.get("parameters") or {})
        check_grammar(_lark("\n".join([f"start: call_{place}", *body])), f"tool {name}")
    except SchemaError:
        if strict or tool.get("strict"):
            raise
        return write(place, name, {"type": "object"})
    return body


def _written(write: _Write, place: int, name: str, parameters: Schema) -> list[str]:
    try:
        return write(place, name, parameters)
    except (TypeError, AttributeError) as exc:  # a number for a list, a list for an object
        raise SchemaError(f"tool {name}: its parameters are no JSON schema") from exc


# --- the JSON form


def _json_body(place: int, name: str, parameters: Schema) -> list[str]:
    head = '{"name": ' + json.dumps(name, ensure_ascii=False) + ', "arguments": '
    return [
        f'call_{place}: {literal(head)} arguments_{place} "}}"',
        f"arguments_{place}: {_inline(_closed(parameters))}",
    ]


def _inline(schema: Schema) -> str:
    return f"%json {json.dumps(json_part(schema, 'spaced')['json_schema'])}"


def _closed(parameters: Schema) -> dict[str, Any]:
    """An object of the named properties only, unless the schema says something else."""
    closed = {"type": "object", **parameters}
    if "properties" in closed or not parameters:
        closed = {"properties": {}, "additionalProperties": False, **closed}
    return closed


# --- the XML form


def _xml_body(place: int, name: str, parameters: Schema) -> list[str]:
    properties = _closed(parameters).get("properties")
    head = literal(f"{name}>\n")
    if properties is None:
        key = f'KEY_{place}: "<parameter=" /[\\w.-]+/ ">\\n" {_VALUE} {_PARAMETER_CLOSE}'
        return [f"call_{place}: {head} KEY_{place}* {literal(FUNCTION_END)}", key]
    required = parameters.get("required") or ()
    rules: list[str] = []
    written = [head]
    for number, (key, schema) in enumerate(properties.items()):
        rule = f"parameter_{place}_{number}"
        written.append(rule if key in required else f"{rule}?")
        rules += _parameter(rule, key, schema, parameters)
    return [f"call_{place}: {' '.join(written)} {literal(FUNCTION_END)}", *rules]


def _parameter(rule: str, key: str, schema: Any, root: Schema) -> list[str]:
    """The rules of one parameter: each alternative of its schema in a rule of its own.

    A text's end belongs to its terminal: it goes on to the closing tag, whatever is in it.
    """
    alternatives = [
        _alternative(f"{rule}_{number}", key, plain, root)
        for number, plain in enumerate(plain_schemas(_as_object(schema), root))
    ]
    names = " | ".join(rules[0].partition(":")[0] for rules in alternatives)
    head = f"{rule}: {literal(f'<parameter={key}>{_LINE}')} ({names})"
    return [head, *(line for rules in alternatives for line in rules)]


def _alternative(name: str, key: str, schema: Schema, root: Schema) -> list[str]:
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        written = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values)
        return [f"{name}: ({' | '.join(map(literal, written))}) {_PARAMETER_CLOSE}"]
    if "string" in schema.get("type", ()) or not set(schema) - _ANNOTATIONS:
        value = " & ".join([_VALUE, *_limits(schema, key)])
        return [f"{name.upper()}: ({value}) {_PARAMETER_CLOSE}"]
    definitions = {word: root[word] for word in ("$defs", "definitions") if word in root}
    return [
        f"{name}: {name}_value {_PARAMETER_CLOSE}",
        f"{name}_value: {_inline({**schema, **definitions})}",
    ]


_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated"}


def _as_object(schema: Any) -> Schema:
    """True, and what is no schema at all, allow anything."""
    return schema if isinstance(schema, Mapping) else {}


def _limits(schema: Schema, key: str) -> list[str]:
    """Regular expressions that a text has to match as well."""
    if "format" in schema:
        raise SchemaError(
            f"parameter {key}: format cannot be enforced in the XML form of calls; use pattern"
        )
    limits = []
    if "minLength" in schema or "maxLength" in schema:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        limits.append(regex(f"(?s:.){{{least},{most}}}"))
    if "pattern" in schema:
        limits.append(regex(_whole(schema["pattern"])))
    return limits


def _whole(pattern: str) -> str:
    """A pattern that may match anywhere, as one that matches the whole text."""
    start = "" if pattern.startswith("^") else "(?s:.*)"
    end = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.*)"
    return f"{start}(?:{pattern.removeprefix('^').removesuffix('' if end else '$')}){end}"


def _without(tag: str) -> str:
    """A regular expression of texts that do not hold the tag; "<" is only its first character.

    No "<" at all, or beginnings of the tag that go on differently.
    """
    begun = [re.escape(tag[:size]) for size in range(1, len(tag))]
    breaks = [f"{start}[^<{tag[size]}]" for size, start in enumerate(begun, 1)]
    chain = f"(?:{'|'.join(begun)})*"
    return f"(?:[^<]|{chain}(?:{'|'.join(breaks)}))*{chain}"


_VALUE = regex(_without(PARAMETER_END))
_PARAMETER_CLOSE = literal(f"\n{PARAMETER_END}\n")
_BODIES: dict[CallForm, _Write] = {
    "json": _json_body,
    "xml": _xml_body,
}
