"""Server lists for the tests, and what became of the processes behind them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from mlx_qwen3.agent.connection import Connection, Timeouts
from mlx_qwen3.agent.mcp import McpServers
from mlx_qwen3.agent.tools import Outcome

SCRIPT = Path(__file__).with_name("rough_server.py")
PATIENCE = 30.0  # seconds; only a failing test waits that long
QUICK = Timeouts(start=20.0, call=20.0)


def rough(*habits: str, **more: Any) -> dict[str, Any]:
    """The entry of a server that misbehaves."""
    return {"command": sys.executable, "args": [str(SCRIPT), *habits], **more}


def servers(timeouts: Timeouts = QUICK, **entries: Any) -> McpServers:
    """Started servers, by name."""
    return McpServers({"mcpServers": entries}, timeouts=timeouts)


def called(running: McpServers, tool: str, **arguments: Any) -> Outcome:
    """Call a tool of the first server, listed or not."""
    return running.call(running.connections[0], tool, arguments)


def state(connection: Connection) -> tuple[str, str]:
    return connection.state, connection.problem


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def is_gone(pid: int) -> bool:
    """Wait for a process to end; False when it does not."""
    deadline = time.monotonic() + PATIENCE
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)
