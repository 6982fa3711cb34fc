"""Tool schemas as they appear in a system turn: plain, verbose, and those of a real MCP server."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from chat import Tool
from copying import coined

Parameter = tuple[str, str, dict[str, Any]]  # name, description, further JSON-schema keys


@dataclass(frozen=True)
class Style:
    """How one client writes its schemas; constant within a conversation."""

    described: bool
    titled: bool
    object_first: bool
    closed: bool

    @classmethod
    def draw(cls, rng: Random) -> Style:
        chances = (0.5, 0.2, 0.7, 0.1)
        return cls(*(rng.random() < chance for chance in chances))


def schema(
    style: Style, name: str, description: str, parameters: list[Parameter], required: list[str]
) -> Tool:
    """One tool in the form {"type": "function", "function": {...}}."""
    properties = {}
    for label, text, extra in parameters:
        entry: dict[str, Any] = {"type": "string"} | extra
        if style.described:
            entry["description"] = text
        if style.titled:
            entry["title"] = label.replace("_", " ").title()
        properties[label] = entry
    body: dict[str, Any] = {"properties": properties, "required": required}
    body = {"type": "object"} | body if style.object_first else body | {"type": "object"}
    if style.titled:
        body["title"] = f"{name}Arguments"
    if style.closed:
        body["additionalProperties"] = False
    function = {"name": name, "description": description, "parameters": body}
    return {"type": "function", "function": function}


def restyle(rng: Random, name: str) -> str:
    """Sometimes give a tool a name in another style, or a made-up one."""
    kind = rng.random()
    if kind < 0.7:
        return name
    if kind < 0.78:
        head, *rest = name.split("_")
        return head + "".join(part.title() for part in rest)
    if kind < 0.84:
        return name.replace("_", "-")
    if kind < 0.88:
        return f"{coined(rng, 1, 3)}_{name}"
    if kind < 0.98:
        return f"{name}_{rng.choice(('v2', 'tool', 'api', 'now', coined(rng, 1, 2)))}"
    return f"{coined(rng)}_{coined(rng, 1, 2)}"


def mcp_time_tools(local: str, titled: bool) -> list[Tool]:
    """get_current_time and convert_time exactly as PyPI's mcp-server-time lists them.

    local: the time zone of the machine the server runs on, which its descriptions mention.
    titled: with the titles that the server's version 2026.10 adds, or without, as older ones.
    """
    use = f"Use '{local}' as local timezone if no"
    zone = "IANA timezone name (e.g., 'America/New_York', 'Europe/London')."
    current = {"timezone": f"{zone} {use} timezone provided by the user."}
    convert = {
        "source_timezone": f"Source {zone} {use} source timezone provided by the user.",
        "time": "Time to convert in 24-hour format (HH:MM)",
        "target_timezone": "Target IANA timezone name (e.g., 'Asia/Tokyo', "
        f"'America/San_Francisco'). {use} target timezone provided by the user.",
    }
    tools = (
        ("get_current_time", "Get current time in a specific timezone", current),
        ("convert_time", "Convert time between timezones", convert),
    )
    return [_mcp_tool(name, text, fields, titled) for name, text, fields in tools]


def _mcp_tool(name: str, description: str, fields: dict[str, str], titled: bool) -> Tool:
    body: dict[str, Any]
    if titled:
        properties = {
            label: {"description": text, "title": label.replace("_", " ").title(), "type": "string"}
            for label, text in fields.items()
        }
        body = {"properties": properties, "required": list(fields), "type": "object"}
        body["title"] = f"{name}Arguments"
    else:
        plain = {label: {"type": "string", "description": text} for label, text in fields.items()}
        body = {"type": "object", "properties": plain, "required": list(fields)}
    function = {"name": name, "description": description, "parameters": body}
    return {"type": "function", "function": function}
