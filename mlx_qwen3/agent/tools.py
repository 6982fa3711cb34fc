"""What a model may call: each tool's offer to the model, and how a call of it is run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from mlx_qwen3.errors import OptionError

Offer: TypeAlias = Mapping[str, Any] | Callable[..., Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a call: a text for the model, and whether that is an error's."""

    text: str
    is_error: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool and where it lives.

    offer: what LLM.stream is told about it, an OpenAI-form schema (or a function, from which it
    makes one itself). run: takes the call's arguments; None when the caller of the conversation
    answers such calls. server: the MCP server it belongs to, "" for none.
    """

    name: str
    offer: Offer
    run: Callable[[Mapping[str, Any]], Outcome] | None = None
    server: str = ""

    @classmethod
    def of(cls, offer: Tool | Offer) -> Tool:
        """A tool from what a person may give: a schema, a function, or a tool already.

        Raises OptionError for anything else.
        """
        if isinstance(offer, Tool):
            return offer
        if isinstance(offer, Mapping):
            return cls(_schema_name(offer), offer)
        if callable(offer):
            return cls(offer.__name__, offer, lambda arguments: _call(offer, arguments))
        raise OptionError(f"tool {offer!r}: expected a function or a schema in OpenAI's form")

    def renamed(self, name: str) -> Tool:
        """The same tool, offered under another name."""
        if not isinstance(self.offer, Mapping):
            raise OptionError(f"two tools are called {self.name}; rename one of them")
        function = {**self.offer.get("function", self.offer), "name": name}
        return replace(self, name=name, offer={"type": "function", "function": function})


def distinct(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """Tools whose names differ: those of servers that share one get the server's in front.

    Raises OptionError when two without a server share a name.
    """
    shared = {name for name, count in Counter(tool.name for tool in tools).items() if count > 1}
    taken = {tool.name for tool in tools if tool.name not in shared or not tool.server}
    named: list[Tool] = []
    for tool in tools:
        if tool.name in shared and tool.server:
            tool = tool.renamed(_free(f"{_word(tool.server)}_{tool.name}", taken))
            taken.add(tool.name)
        elif tool.name in {other.name for other in named}:
            raise OptionError(f"two tools are called {tool.name}; rename one of them")
        named.append(tool)
    return tuple(named)


def _word(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name)


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def _schema_name(schema: Mapping[str, Any]) -> str:
    function = schema.get("function", schema)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise OptionError(f"tool {dict(schema)!r}: has no name")
    return name


def _call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Outcome:
    """Call a Python function with a model's arguments. What it raises is for the model to read."""
    try:
        value = function(**arguments)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except Exception as exc:  # noqa: BLE001 - whatever a tool does, the conversation goes on
        return Outcome(f"{type(exc).__name__}: {exc}", is_error=True)
    return Outcome(text)
