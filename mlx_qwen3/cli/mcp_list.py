"""What MCP servers are there and what they offer, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_qwen3.agent.connection import Connection
    from mlx_qwen3.agent.tools import Tool

_MOST = 20  # entries of a kind
_WIDTH = 70  # characters of a description


def describe_servers(connections: Sequence[Connection], tools: Sequence[Tool]) -> str:
    """A paragraph for each server: its state, then its tools under the model's names for them."""
    return "\n".join(line for one in connections for line in _server(one, tools))


def trouble(connections: Sequence[Connection]) -> Iterator[str]:
    """A line for each server that could not be started."""
    for one in connections:
        if one.state == "failed":
            yield f"MCP server {one.spec.name} {one.problem}; the chat goes on without it"


def _server(one: Connection, tools: Sequence[Tool]) -> Iterator[str]:
    yield f"{one.spec.name}: {one.problem or one.state}"
    mine = [tool for tool in tools if tool.server == one.spec.name]
    described = {listed.name: listed.description for listed in one.listing.tools}
    texts = [described.get(tool.name) or _text(tool) for tool in mine]
    yield from _entries("tool", [tool.name for tool in mine], texts)
    found = one.listing.resources
    yield from _entries("resource", [str(r.uri) for r in found], [r.description for r in found])
    asked = one.listing.prompts
    yield from _entries("prompt", [p.name for p in asked], [p.description for p in asked])


def _entries(kind: str, names: Sequence[str], texts: Sequence[Any]) -> Iterator[str]:
    for name, text in list(zip(names, texts, strict=True))[:_MOST]:
        line = " ".join(str(text or "").split())
        line = line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
        yield f"  {kind} {name}" + (f": {line}" if line else "")
    if len(names) > _MOST:
        yield f"  … and {len(names) - _MOST} more {kind}s"


def _text(tool: Tool) -> str:
    offer: Any = tool.offer
    return str(offer["function"].get("description", ""))
