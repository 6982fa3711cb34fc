"""A tool call while it is written: its name as soon as it is known, its arguments as they grow.

What is given out is JSON, and is never taken back: the parts of a finished call, joined, read as
its arguments. What the model writes in need of repair, and values whose type only their end
shows, wait for the end.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mlx_qwen3.text.tool_calls import (
    CLOSE,
    FUNCTION,
    FUNCTION_END,
    OPEN,
    PARAMETER_END,
    ToolCall,
    Tools,
    parameters_of,
    partial_suffix,
    repairs,
    schema_types,
    typed_value,
)


class _Arguments(Protocol):
    """The arguments of one call in one of the two forms."""

    def grow(self, text: str) -> str:
        """New JSON that is certain, given the call's text so far."""

    def wholes(self, call: ToolCall) -> Iterator[str]:
        """What all of the JSON may be, now that the call is complete."""


class CallProgress:
    """One call. It is given the call's text from its first tag on, which only ever grows.

    name: None until it is known. arguments: all JSON given out so far. Never raises.
    """

    def __init__(self, tools: Tools | None = None) -> None:
        self.name: str | None = None
        self.arguments = ""
        self._tools = tools or ()
        self._form: _Arguments | None = None

    def update(self, text: str) -> str:
        """New JSON of the arguments."""
        if self._form is None:
            self._form = self._begin(text)
        new = "" if self._form is None else self._form.grow(text)
        self.arguments += new
        return new

    def finish(self, call: ToolCall) -> str:
        """The rest, when the call is complete; "" for one that could not be read."""
        if call.error is not None:
            return ""
        self.name = call.name
        wholes: list[str] = [] if self._form is None else list(self._form.wholes(call))
        for whole in (*wholes, json.dumps(call.arguments, ensure_ascii=False)):
            if whole.startswith(self.arguments):
                given, self.arguments = self.arguments, whole
                return whole[len(given) :]
        return ""

    def _begin(self, text: str) -> _Arguments | None:
        if found := _XML_HEAD.match(text):
            self.name = found[1].strip()
            return _XmlArguments(parameters_of(self._tools, self.name), found.end())
        if found := _JSON_HEAD.match(text):
            self.name = found[1]
            return _JsonArguments(found.end())
        return None


_XML_HEAD = re.compile(rf"(?:{OPEN})?\s*{FUNCTION}([^>\n]+)>\s*")
# A name with escapes in it, or behind the arguments, is known at the end.
_JSON_HEAD = re.compile(
    rf'{OPEN}\s*{{\s*"name"\s*:\s*"([^"\\\x00-\x1f]+)"\s*,\s*"arguments"\s*:\s*'
)


class _JsonArguments:
    """Arguments as they are written, up to the first character that is going to be repaired."""

    def __init__(self, start: int) -> None:
        self._start = self._position = start
        self._open: list[str] = []
        self._in_string = self._stuck = False

    def grow(self, text: str) -> str:
        if self._position == self._start:  # white space may have come since
            self._start += len(text) - self._start - len(text[self._start :].lstrip())
            self._position = self._start
        start = self._position
        if start == self._start and text[start : start + 1] != "{":
            self._stuck = self._stuck or len(text) > start  # the object as a text, or no object
        while not self._stuck and (found := self._next(text)) is not None:
            self._position = found.end()
            self._step(found[1])
        return text[start : self._position]

    def wholes(self, call: ToolCall) -> Iterator[str]:
        for text in (call.raw, *repairs(call.raw.removesuffix(CLOSE).rstrip(), truncated=False)):
            written = _STRING.sub(lambda found: _CONTROL.sub(_escaped, found[0]), text)
            try:
                value, end = json.JSONDecoder().raw_decode(written, self._start)
            except (ValueError, RecursionError):
                continue
            if value == call.arguments:
                yield written[self._start : end]

    def _next(self, text: str) -> "re.Match[str] | None":
        found = _STEPS[self._in_string].match(text, self._position)
        if found is None and len(text) > self._position:
            self._stuck = not _UNFINISHED[self._in_string].match(text, self._position)
        return found

    def _step(self, part: str) -> None:
        if part == '"':
            self._in_string = not self._in_string
        elif not self._in_string and part in _PARTNER:
            self._open.append(_PARTNER[part])
        elif not self._in_string and part in ("}", "]"):
            # Where a bracket is wrong nothing is certain; where it is the last, all is said.
            self._stuck = self._open.pop() != part or not self._open


_PARTNER = {"{": "}", "[": "]"}
# Outside and inside of a string: the next part that is certain. Space belongs to what follows.
_STEPS = {
    False: re.compile(r'\s*(["{}\[\]]|[^\s"{}\[\]<]+)'),
    True: re.compile(r'("|[^"\\\x00-\x1f]+|\\["\\/nrt]|\\u[0-9a-fA-F]{4})'),
}
_UNFINISHED = {False: re.compile(r"\s*\Z"), True: re.compile(r"\\(u[0-9a-fA-F]{0,3})?\Z")}
_STRING = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f]")


def _escaped(found: "re.Match[str]") -> str:
    return json.dumps(found[0])[1:-1]


class _XmlArguments:
    """Values as JSON once they are complete; texts as they grow, up to what may end them."""

    def __init__(self, root: Mapping[str, Any], start: int) -> None:
        self._root = root
        properties = root.get("properties")
        self._schemas = properties if isinstance(properties, Mapping) else {}
        self._first = True
        self._key: str | None = None
        self._value = self._position = self._searched = start
        self._growing = False  # a text of which some was given out

    def grow(self, text: str) -> str:
        out = []
        while self._key is not None or (head := _PARAMETER.match(text, self._position)):
            if self._key is None and head is not None:
                out.append(self._begin(head))
            end = _VALUE_END.search(text, max(self._position, self._searched - _WINDOW))
            if end is None:
                self._searched = len(text)
                return "".join([*out, self._grow_text(text)])
            out.append(self._end(text, end.start()))
            self._position = end.end()
        return "".join(out)

    def wholes(self, call: ToolCall) -> Iterator[str]:
        return iter(())

    def _begin(self, head: "re.Match[str]") -> str:
        self._key, self._growing = head[1].strip(), False
        self._value = self._position = head.end()
        comma, self._first = "{" if self._first else ", ", False
        return f"{comma}{json.dumps(self._key, ensure_ascii=False)}: "

    def _grow_text(self, text: str) -> str:
        schema = self._schemas.get(self._key)
        if schema_types(schema, self._root) != {"string"}:
            return ""
        found = _MAY_END.search(text, self._position)
        end = found.start() if found else len(text) - partial_suffix(text, _ENDS)
        end = len(text[:end].rstrip("\n"))
        if end <= self._position:
            return ""
        return self._give(text, end)

    def _give(self, text: str, end: int) -> str:
        new = text[self._position : end]
        start = "" if self._growing else '"'
        new = new if self._growing else new.removeprefix(_LINE)
        self._growing, self._position = True, end
        return start + json.dumps(new, ensure_ascii=False)[1:-1]

    def _end(self, text: str, end: int) -> str:
        key, self._key = self._key, None
        if self._growing:
            new = text[self._position : end].removesuffix("\n")
            return json.dumps(new, ensure_ascii=False)[1:]
        written = text[self._value : end].removeprefix("\n").removesuffix("\n")
        value = typed_value(written, self._schemas.get(key), self._root)
        return json.dumps(value, ensure_ascii=False)


_LINE = "\n"
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>")
# The end of a value that is certain before the end of the call: another one follows.
_VALUE_END = re.compile(rf"{PARAMETER_END}\s*(?=<parameter=)|\n(?=<parameter=)")
_WINDOW = 64  # characters before the end of the text in which that end may begin
_ENDS = (PARAMETER_END, FUNCTION_END, CLOSE, "<parameter=")
_MAY_END = re.compile("|".join(_ENDS))
