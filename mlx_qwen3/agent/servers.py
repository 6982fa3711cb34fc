"""Which MCP servers there are: the `mcpServers` JSON of Claude Desktop, Cursor and LM Studio.

    {"mcpServers": {
        "time":  {"command": "mcp-server-time", "args": [], "env": {"TZ": "UTC"}},
        "notes": {"url": "https://example.com/mcp", "headers": {"Authorization": "Bearer ${TOKEN}"}}
    }}

Keys that belong to one of those apps only ("autoApprove", "icon", ...) are left alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_qwen3.errors import McpError

# ${NAME}, Cursor's ${env:NAME}, and ${NAME:-default}.
_VARIABLE = re.compile(r"\$\{(?:env:)?(\w+)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class ServerSpec:
    """How to reach one server: by starting `command` (stdio), or at `url` (streamable HTTP).

    env: added to a minimal environment (PATH, HOME and the like). headers: sent with every
    request. problem: why it cannot be used, "" when it can; one bad entry spoils no other.
    """

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    disabled: bool = False
    problem: str = ""


def read_servers(source: str | Path | Mapping[str, Any]) -> tuple[ServerSpec, ...]:
    """The servers of a file, or of what such a file holds.

    Raises McpError when it cannot be read or has no "mcpServers" object. What is wrong with a
    single server is told by its `problem`.
    """
    config = source if isinstance(source, Mapping) else _read(Path(source))
    where = "mcp" if isinstance(source, Mapping) else str(source)
    servers = config.get("mcpServers", config.get("servers"))  # VS Code's name for it
    if not isinstance(servers, Mapping):
        raise McpError(f'{where}: expected an object {{"mcpServers": {{"name": {{...}}}}}}')
    return tuple(_spec(str(name), entry) for name, entry in servers.items())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise McpError(f"{path}: cannot be read as JSON ({exc})") from exc
    if not isinstance(config, dict):
        raise McpError(f"{path}: holds a {type(config).__name__}; expected an object")
    return config


def _spec(name: str, entry: Any) -> ServerSpec:
    try:
        return _checked(name, entry)
    except ValueError as exc:
        disabled = isinstance(entry, Mapping) and entry.get("disabled") is True
        return ServerSpec(name, disabled=disabled, problem=str(exc))


def _checked(name: str, entry: Any) -> ServerSpec:
    """One server, checked and expanded. Raises ValueError."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"is a {type(entry).__name__}; expected an object")
    if entry.get("disabled") is True or entry.get("enabled") is False:
        return ServerSpec(name, disabled=True)
    command, url = _text(entry, "command"), _text(entry, "url") or _text(entry, "serverUrl")
    if bool(command) == bool(url):
        raise ValueError('needs either "command" (a program) or "url" (streamable HTTP)')
    if entry.get("type") == "sse":
        raise ValueError('has type "sse", which MCP has retired; use its streamable HTTP url')
    return ServerSpec(
        name,
        os.path.expanduser(command),
        _texts(entry, "args"),
        _mapping(entry, "env"),
        os.path.expanduser(_text(entry, "cwd")) or None,
        url,
        _mapping(entry, "headers"),
    )


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key) or ""
    if not isinstance(value, str):
        raise ValueError(f"has {key} {value!r}; expected a text")
    return _expanded(value)


def _texts(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = entry.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"has {key} {values!r}; expected a list of texts")
    return tuple(_expanded(value) for value in values)


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, str]:
    values = entry.get(key) or {}
    if not isinstance(values, Mapping):
        raise ValueError(f"has {key} {values!r}; expected an object")
    # Numbers and booleans are common slips here, and their text is what was meant.
    return {str(name): _expanded(_scalar(value, key)) for name, value in values.items()}


def _scalar(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise ValueError(f"has {value!r} in {key}; expected texts")


def _expanded(text: str) -> str:
    """A text with its ${NAME} filled in. Raises ValueError for one that is not set."""

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        filled = os.environ.get(name, default)
        if filled is None:
            raise ValueError(f"needs the environment variable {name}, which is not set")
        return filled

    return _VARIABLE.sub(value, text)
