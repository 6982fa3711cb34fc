"""`mcpServers` files: what they may say, and what is said about those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_qwen3.agent.servers import ServerSpec, read_servers
from mlx_qwen3.errors import McpError


def read(**entries: Any) -> tuple[ServerSpec, ...]:
    return read_servers({"mcpServers": entries})


def test_a_file_as_desktop_apps_share_it(tmp_path: Path) -> None:
    path = tmp_path / "servers.json"
    entries = {
        "time": {"command": "uvx", "args": ["mcp-server-time"], "env": {"TZ": "UTC"}},
        "web": {"url": "http://localhost:1/mcp", "headers": {"X-Key": "1"}, "type": "http"},
        "off": {"command": "x", "disabled": True, "autoApprove": ["everything"]},
    }
    path.write_text(json.dumps({"mcpServers": entries, "theme": "dark"}))
    time, web, off = read_servers(path)
    assert time == ServerSpec("time", "uvx", ("mcp-server-time",), {"TZ": "UTC"})
    assert web == ServerSpec("web", url="http://localhost:1/mcp", headers={"X-Key": "1"})
    assert off == ServerSpec("off", disabled=True)


def test_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    monkeypatch.delenv("NO_SUCH", raising=False)
    (spec,) = read(
        a={
            "command": "${KEY}/run",
            "args": ["${NO_SUCH:-plain}", "$KEY"],
            "env": {"TOKEN": "${env:KEY}", "PORT": 80, "DEBUG": True},
        }
    )
    assert (spec.command, spec.args) == ("secret/run", ("plain", "$KEY"))
    assert spec.env == {"TOKEN": "secret", "PORT": "80", "DEBUG": "true"}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("uvx", "is a str"),
        ({}, 'either "command"'),
        ({"command": "a", "url": "http://b"}, 'either "command"'),
        ({"command": ["a"]}, "has command ['a']"),
        ({"command": "a", "args": "b"}, "has args 'b'"),
        ({"command": "a", "env": {"K": None}}, "has None in env"),
        ({"command": "a", "env": {"K": "${NO_SUCH_VARIABLE}"}}, "NO_SUCH_VARIABLE"),
        ({"url": "http://b/sse", "type": "sse"}, "retired"),
    ],
)
def test_one_bad_entry_spoils_no_other(entry: Any, problem: str) -> None:
    bad, good = read(bad=entry, good={"command": "b"})
    assert problem in bad.problem
    assert good == ServerSpec("good", "b")


def test_a_disabled_entry_is_not_looked_into() -> None:
    (spec,) = read(off={"command": "a", "env": {"K": "${NO_SUCH_VARIABLE}"}, "disabled": True})
    assert (spec.disabled, spec.problem) == (True, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1]", "holds a list"), ("{", "cannot be read as JSON"), ("{}", '"mcpServers"')],
)
def test_what_is_no_list_of_servers(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "servers.json"
    path.write_text(text)
    with pytest.raises(McpError, match=said) as caught:
        read_servers(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(McpError, match="No such file"):
        read_servers(tmp_path / "servers.json")
