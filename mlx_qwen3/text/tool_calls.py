"""Tool calls as Qwen3 writes them: where one ends in a stream, and what it says.

Two forms. Qwen3:  <tool_call>{"name": ..., "arguments": {...}}</tool_call>
Qwen3-Coder:       <function=name><parameter=key>value</parameter></function>, usually inside
                   <tool_call> as well.
Whatever the text, reading it never raises: a call that makes no sense carries an `error`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER_END = "</parameter>"

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ToolCall:
    """One call the model made.

    arguments: what it passes, {} where the text could not be read. raw: the text as written,
    tags included. error: None, or what is wrong with the text, in one line.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: str = ""
    error: str | None = None


def partial_suffix(text: str, tags: Sequence[str]) -> int:
    """Length of the longest end of `text` that could still become one of the tags."""
    longest = max(map(len, tags), default=1) - 1
    start = text.find("<", max(0, len(text) - longest))
    while start >= 0:
        if any(tag.startswith(text[start:]) for tag in tags):
            return len(text) - start
        start = text.find("<", start + 1)
    return 0


class CallScanner:
    """Finds where a call ends, looking at every character once.

    The text it is given always starts with the call's first tag and only ever grows.
    """

    def __init__(self) -> None:
        self._form: Callable[[str], int | None] | None = None
        self._wrapped = False
        self._finished = False
        self._position = 0
        self._in_string = False
        self._doubtful: list[int] = []  # ends that may be part of a value

    def end(self, text: str, finished: bool = False) -> int | None:
        """Offset after the call, None while it is open. finished: no more text will come."""
        self._finished = finished
        if self._form is None:
            self._form = self._find_form(text)
        return None if self._form is None else self._form(text)

    def _find_form(self, text: str) -> Callable[[str], int | None] | None:
        self._wrapped = text.startswith(OPEN)
        body = text.removeprefix(OPEN).lstrip()
        if body.startswith(FUNCTION):
            return self._xml_end
        self._position = len(OPEN)
        return None if FUNCTION.startswith(body) else self._json_end

    def last_resort(self) -> int | None:
        """At the end of the stream: where a call ended that looked as if it went on."""
        return self._doubtful[0] if self._doubtful else None

    def _json_end(self, text: str) -> int | None:
        while found := _JSON_MARKS[self._in_string].search(text, self._position):
            mark, self._position = found[0], found.end()
            if mark == '"':
                self._in_string = not self._in_string
            elif mark == CLOSE and self._in_string:
                self._doubtful.append(found.end())
            elif mark in (OPEN, CLOSE):
                end = found.end() if mark == CLOSE else found.start()
                return self._settle(text, end)
        self._skip(text)
        return None

    def _settle(self, text: str, end: int) -> int:
        """With an odd quote in a broken call, the strings seen were the gaps between them."""
        # as if truncated: without adding the brackets that a call ended too late would lack
        if self._doubtful and read_call(text[:end], truncated=True).error is not None:
            return self._doubtful[0]
        return end

    def _xml_end(self, text: str) -> int | None:
        for found in _XML_MARKS[self._wrapped].finditer(text, self._position):
            closed = _closes_values(text[: found.start()])
            if self._wrapped and found[0] == FUNCTION_END:
                after = text[found.end() :].lstrip()
                if after.startswith(CLOSE):
                    return len(text) - len(after) + len(CLOSE)
                if CLOSE.startswith(after):  # not yet known
                    return len(text) if closed and self._finished else None
            if closed:
                return found.end()
            self._doubtful.append(found.end())
            self._position = found.end()
        self._skip(text)
        return None

    def _skip(self, text: str) -> None:
        """Nothing ends in this text, unless a tag was cut in two by its end."""
        self._position = max(self._position, len(text) - len(CLOSE) + 1)


# What matters outside and inside of a JSON string.
_JSON_MARKS = {
    False: re.compile(rf'"|{OPEN}|{CLOSE}'),
    True: re.compile(rf'\\.|"|{CLOSE}', re.DOTALL),
}
# What may end the XML form, alone and inside of <tool_call>.
_XML_MARKS = {False: re.compile(FUNCTION_END), True: re.compile(f"{FUNCTION_END}|{CLOSE}")}
_FUNCTION_OPENED = re.compile(r"<function=[^>]*>\s*\Z")


def _closes_values(before: str) -> bool:
    """Whether no parameter is open before an end tag."""
    return before.rstrip().endswith(PARAMETER_END) or bool(_FUNCTION_OPENED.search(before))


def read_call(raw: str, tools: Tools | None = None, truncated: bool = False) -> ToolCall:
    """The call a text makes. Never raises.

    raw: the text from the first tag to the last. tools: their schemas, for the types of values
    in the XML form. truncated: the stream ended before the call did.
    """
    body = _without_tags(raw, truncated)
    read = _read_xml if body.startswith(FUNCTION) else _read_json
    try:
        name, arguments = read(body, tools, truncated)
        _check_encodable(arguments)
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        error = f"tool call {exc}" + "; its end is missing" * truncated
        return ToolCall(_guess_name(body), {}, raw, error)
    return ToolCall(name, arguments, raw)


def _without_tags(raw: str, truncated: bool) -> str:
    if truncated:
        raw = raw[: len(raw) - partial_suffix(raw, [CLOSE])]
    return raw.removeprefix(OPEN).removesuffix(CLOSE).strip()


def _guess_name(body: str) -> str:
    found = re.search(r'<function=([^>\n]+)>|"name"\s*:\s*"([^"\\]+)"', body)
    return (found[1] or found[2]).strip() if found else ""


def _check_encodable(arguments: dict[str, Any]) -> None:
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise ValueError("holds half of a surrogate pair") from exc


# --- the JSON form


def _read_json(body: str, tools: Tools | None, truncated: bool) -> tuple[str, dict[str, Any]]:
    call = _load_repaired(body, truncated)
    if not isinstance(call, dict):
        raise ValueError(f"is a JSON {type(call).__name__}, expected an object")
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if not isinstance(name, str) or not name:
        raise ValueError("has no name")
    if isinstance(arguments, str):  # the object as its own JSON text
        arguments = _load_repaired(arguments, truncated) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise ValueError(f"has arguments of type {type(arguments).__name__}, expected an object")
    return name, arguments


def _load_repaired(text: str, truncated: bool) -> Any:
    """JSON, else what it becomes by repairs that cannot change its meaning."""
    try:
        return _load(text)
    except ValueError as exc:  # under no other name: that would hold all callers until a collection
        for repaired in repairs(text, truncated):
            with suppress(ValueError):
                return _load(repaired, strict=False)
        raise ValueError(f"is not valid JSON: {exc}") from exc


def repairs(text: str, truncated: bool) -> Iterator[str]:
    yield text  # raw newlines and tabs in strings, which strict=False allows
    text = _ESCAPE.sub(lambda found: found[0] if found[1] else r"\\", text)
    yield text
    if not truncated:
        yield _balanced(text)


# A backslash and, if that is meant as an escape, what follows. In text that needs repair \b and
# \f are a regex whose backslashes were not doubled, as \d is: nobody writes a form feed.
_ESCAPE = re.compile(r'\\(["\\/nrt]|u[0-9a-fA-F]{4})?')
_BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|[][{}]', re.DOTALL)
_PARTNER = {"{": "}", "[": "]"}


def _balanced(text: str) -> str:
    """Brackets missing at the very end are added, surplus ones there removed."""
    open_brackets: list[str] = []
    for found in _BRACKETS.finditer(text):
        if found[0] in _PARTNER:
            open_brackets.append(_PARTNER[found[0]])
        elif found[0] in "]}":
            if not open_brackets or open_brackets.pop() != found[0]:
                return text
            if not open_brackets and not text[found.end() :].strip(" \n}]"):
                return text[: found.end()]
    return text + "".join(reversed(open_brackets))


def _load(text: str, strict: bool = True) -> Any:
    return json.loads(text, strict=strict, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# --- the XML form


def _read_xml(body: str, tools: Tools | None, truncated: bool) -> tuple[str, dict[str, Any]]:
    inside = body.removesuffix(FUNCTION_END)
    if truncated and (inside == body or not _closes_values(inside)):
        raise ValueError(f"has no {FUNCTION_END}")
    opened = re.match(r"<function=([^>\n]+)>\s*", body)
    if opened is None:
        raise ValueError("has no function name")
    name = opened[1].strip()
    root = parameters_of(tools or (), name)
    schemas = root.get("properties") or {}
    values = dict(_parameters(inside[opened.end() :].rstrip()))
    return name, {
        key: typed_value(text, schemas.get(key, {}), root) for key, text in values.items()
    }


# A value ends at the tag after which nothing but the next parameter, or nothing, follows; a
# forgotten closing tag is forgiven.
_PARAMETER = re.compile(
    r"<parameter=([^>\n]+)>(.*?)(?:</parameter>\s*(?=<parameter=|\Z)|(?=\n<parameter=)|\Z)\s*",
    re.DOTALL,
)


def _parameters(body: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(body):
        found = _PARAMETER.match(body, position)
        if found is None:
            raise ValueError("has text outside of its parameters")
        yield found[1].strip(), found[2].removeprefix("\n").removesuffix("\n")
        position = found.end()


def parameters_of(tools: Tools, name: str) -> Mapping[str, Any]:
    """The schema of a tool's arguments, {} where the tool or its schema is not known."""
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters") or {}
            return parameters if isinstance(parameters, Mapping) else {}
    return {}


def typed_value(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """A value by its schema's types; without any, JSON if it is JSON but no string."""
    types = schema_types(schema, root)
    try:
        value = _load(_PYTHON_CONSTANTS.get(text, text))
    except (ValueError, RecursionError):
        return text
    if isinstance(value, str) or (types and not types & _JSON_TYPES[type(value)]):
        return text
    return value


_PYTHON_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_JSON_TYPES: dict[type, set[str]] = {
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    type(None): {"null"},
    list: {"array"},
    dict: {"object"},
}


def schema_types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types a schema allows, {} when it does not say."""
    types: set[str] = set()
    for option in plain_schemas(schema, root):
        declared = option.get("type") or []
        types |= (
            {declared} if isinstance(declared, str) else set(filter(_is_text, _listed(declared)))
        )
        if not declared and all(map(_is_text, _listed(option.get("enum")) or [0])):
            types.add("string")
    return types


def _listed(value: Any) -> Sequence[Any]:
    """A list, and none of what a schema that is not one may have in its place."""
    return value if isinstance(value, list | tuple) else ()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def plain_schemas(
    schema: Any, root: Mapping[str, Any], depth: int = 4
) -> Iterator[Mapping[str, Any]]:
    """The alternatives a schema consists of, its anyOf, oneOf and $ref into `root` followed."""
    if not isinstance(schema, Mapping):
        return
    options = [option for name in ("anyOf", "oneOf") for option in _listed(schema.get(name))]
    if depth and "$ref" in schema:
        options.append(referred(schema["$ref"], root))
    if not options or "type" in schema:
        yield schema
    for option in options:
        yield from plain_schemas(option, root, depth - 1)


def referred(reference: Any, root: Mapping[str, Any]) -> Any:
    """What "#/$defs/Name" names."""
    found: Any = root
    for step in str(reference).removeprefix("#").split("/")[1:]:
        found = found.get(step) if isinstance(found, Mapping) else None
    return found
