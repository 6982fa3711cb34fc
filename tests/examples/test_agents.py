"""The examples run as they stand, on the demo model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_qwen3.agent.servers import read_servers
from mlx_qwen3.demo import has_demo

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

needs_demo = pytest.mark.skipif(not has_demo("demo"), reason="the demo model is not here")


def run(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@needs_demo
def test_conversation() -> None:
    lines = run("conversation.py").stdout.splitlines()
    assert lines[0] == "27 + 58 = 85."
    assert re.fullmatch(r"It is \d\d:\d\d in Tokyo\.", lines[1])
    assert re.fullmatch(r"6 messages, \d+ tokens", lines[2])


@needs_demo
def test_mcp_agent() -> None:
    pytest.importorskip("mcp_server_time")
    done = run("mcp_agent.py")
    assert re.fullmatch(r"It is \d\d:\d\d in Tokyo\.\n", done.stdout)
    state, call, result = done.stderr.splitlines()
    assert state == "time: ready"
    assert call == '-> get_current_time {"timezone": "Asia/Tokyo"}'
    assert done.stdout[6:11] in result


def test_the_list_of_servers_can_be_read() -> None:
    time, *others = read_servers(EXAMPLES / "servers.json")
    assert (time.command, time.problem) == ("uvx", "")
    assert [other.disabled for other in others] == [True, True]
