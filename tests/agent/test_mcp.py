"""Real MCP servers, well behaved and not: each failure is an outcome, none ends the program."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwen3.agent.connection import Timeouts
from mlx_qwen3.agent.mcp import McpServers
from mlx_qwen3.errors import McpError
from tests.agent.rough import QUICK, called, is_alive, is_gone, rough, servers, state

pytest.importorskip("mcp")


# --- starting


def test_servers_start_side_by_side_and_fail_alone(caplog: pytest.LogCaptureFixture) -> None:
    with servers(
        good=rough(),
        missing={"command": "no-such-program-anywhere"},
        crash={"command": sys.executable, "args": ["-c", "raise SystemExit('bad key')"]},
        unset={"command": "a", "env": {"K": "${NO_SUCH_VARIABLE}"}},
        off=rough(disabled=True),
        nobody={"url": "http://127.0.0.1:9/mcp"},
    ) as running:
        states = {one.spec.name: state(one) for one in running.connections}
        assert states["good"] == ("ready", "")
        assert states["off"] == ("disabled", "")
        said = {
            "missing": "no-such-program",
            "crash": "bad key",
            "unset": "NO_SUCH",
            "nobody": "failed: ",
        }
        for name, words in said.items():
            assert states[name][0] == "failed"
            assert words in states[name][1]
            assert "\n" not in states[name][1]
        assert {tool.server for tool in running.tools()} == {"good"}
    assert {record.args[0] for record in caplog.records if record.args} == said.keys()


def test_a_server_that_never_answers_is_given_up() -> None:
    with servers(Timeouts(start=0.5), silent=rough("silent")) as running:
        assert state(running.connections[0]) == ("failed", "did not start within 0.5 s")
        assert called(running, "echo").is_error


def test_tools_are_offered_in_openais_form() -> None:
    with servers(a=rough()) as running:
        echo = running.tools()[0]
        function = {"name": "echo", "description": "", "parameters": {"type": "object"}}
        assert echo.offer == {"type": "function", "function": function}
        assert echo.run is not None
        assert json.loads(echo.run({"text": "東京"}).text) == {"text": "東京"}


def test_the_environment_is_passed_on_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_OURS", "1")
    script = "import os, sys; sys.exit(' '.join(os.environ))"
    entry = {"command": sys.executable, "args": ["-c", script], "env": {"GIVEN": "1"}}
    with servers(a=entry) as running:
        words = running.connections[0].problem
    assert "GIVEN" in words
    assert "SECRET_OF_OURS" not in words


# --- calls that go wrong


def test_a_crash_is_told_with_its_last_words_and_the_next_call_starts_anew() -> None:
    with servers(a=rough()) as running:
        first = called(running, "pid")
        crash = called(running, "crash")
        assert crash.is_error
        assert crash.text == 'the server a has ended (its last words: "out of cheese")'
        assert running.connections[0].state == "failed"
        second = called(running, "pid")
        assert not second.is_error
        assert second.text != first.text


def test_kill_9_between_and_during_calls() -> None:
    with servers(a=rough()) as running:
        pid = int(called(running, "pid").text)
        os.kill(pid, signal.SIGKILL)
        assert is_gone(pid)
        assert "has ended" in called(running, "echo").text
        pid = int(called(running, "pid").text)
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        hung = called(running, "hang")
        assert hung.is_error
        assert "has ended" in hung.text
        assert called(running, "echo", a=1).text == '{"a": 1}'


def test_a_call_that_takes_too_long() -> None:
    with servers(Timeouts(start=20, call=0.5), a=rough()) as running:
        outcome = called(running, "hang")
        assert (outcome.text, outcome.is_error) == (
            "the server a did not answer within 0.5 s",
            True,
        )


@pytest.mark.parametrize(
    ("tool", "said"), [("fail", "the disk is full"), ("refuse", "no such method")]
)
def test_errors_are_told_as_such(tool: str, said: str) -> None:
    with servers(a=rough()) as running:
        outcome = called(running, tool)
        assert (outcome.text, outcome.is_error) == (said, True)
        assert running.connections[0].state == "ready"


def test_garbage_between_the_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with servers(a=rough("noisy")) as running:
        assert called(running, "echo", a=1).text == '{"a": 1}'
    assert capfd.readouterr() == ("", "")


def test_megabytes_arrive() -> None:
    with servers(a=rough()) as running:
        assert len(called(running, "big").text) == 5_000_000


def test_what_is_no_text_is_named() -> None:
    with servers(a=rough()) as running:
        assert called(running, "picture").text == "[image, image/png: this model reads text only]"


def test_ctrl_c_cancels_the_call_and_not_the_server() -> None:
    with servers(a=rough(), b=rough()) as running:
        _, other = running.connections
        pid = int(called(running, "pid").text)
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            called(running, "hang")
        assert is_alive(pid)
        assert running.call(other, "echo", {}).text == "{}"


# --- ending


@pytest.mark.parametrize("habits", [(), ("stubborn",), ("deaf",)])
def test_closing_ends_every_process(habits: tuple[str, ...]) -> None:
    running = servers(a=rough())
    pid = int(called(running, "pid").text)
    running.close()
    running.close()
    assert is_gone(pid)


def test_closing_in_the_midst_of_starting() -> None:
    starting = servers(a=rough("silent"))
    starting.close()
    assert [one.state for one in starting.connections] != ["ready"]


_FORGETS = """
from tests.agent.rough import *
running = servers(a=rough(*{habits!r}))
print(called(running, "pid").text, flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["", "del running", "raise SystemExit(3)"])
@pytest.mark.parametrize("habits", [[], ["stubborn"]])
def test_nothing_outlives_a_program_that_forgets(then: str, habits: list[str]) -> None:
    script = _FORGETS.format(then=then, habits=habits)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert is_gone(int(done.stdout))


# --- without the package


def test_the_sdk_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(McpError, match=r"pip install 'mlx-qwen3\[mcp\]'"):
        servers(a=rough())
    servers(a=rough(disabled=True)).close()
    monkeypatch.setattr(metadata, "version", lambda _: "1.12.0")
    with pytest.raises(McpError, match=r"mcp 1\.12\.0 is too old"):
        servers(a=rough())


# --- streamable HTTP

_HTTP = """
import sys
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

server = MCPServer("web")

@server.tool()
def key(context: Context) -> str:
    "Tell the key that came with the request."
    return str(context.headers.get("x-key") if context.headers else None)

@server.resource("note://today")
def today() -> str:
    "What is on."
    return "nothing"

@server.prompt()
def poem(subject: str) -> str:
    "Write a poem."
    return f"Write a poem about {{subject}}."

server.run("streamable-http", port=int(sys.argv[1]))
"""


@pytest.fixture
def web() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(url, process) of an HTTP server made with the SDK."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = _HTTP.replace("{{", "{").replace("}}", "}")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/mcp", process
    process.kill()
    process.wait()


def test_streamable_http(web: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, process = web
    with servers(web={"url": url, "headers": {"X-Key": "abc"}}) as running:
        (connection,) = running.connections
        assert state(connection) == ("ready", "")
        assert [str(one.uri) for one in connection.listing.resources] == ["note://today"]
        assert [one.name for one in connection.listing.prompts] == ["poem"]
        assert called(running, "key").text == "abc"
        process.kill()
        process.wait()
        gone = called(running, "key")
        assert gone.is_error
        assert "\n" not in gone.text


def test_an_address_that_is_no_mcp_server(web: tuple[str, subprocess.Popen[bytes]]) -> None:
    with servers(web={"url": web[0] + "/elsewhere"}) as running:
        assert running.connections[0].state == "failed"


# --- servers from PyPI and npm


def test_mcp_server_time() -> None:
    pytest.importorskip("mcp_server_time")
    entry = {"command": sys.executable, "args": ["-m", "mcp_server_time"]}
    with servers(time=entry) as running:
        assert [tool.name for tool in running.tools()] == ["get_current_time", "convert_time"]
        outcome = called(running, "get_current_time", timezone="Asia/Tokyo")
        assert json.loads(outcome.text)["timezone"] == "Asia/Tokyo"
        assert called(running, "get_current_time", timezone="Nowhere/Else").is_error


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two servers from npm are installed."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on this machine")
    folder = tmp_path_factory.mktemp("npm")
    packages = ["server-filesystem", "server-everything"]
    names = [f"@modelcontextprotocol/{name}" for name in packages]
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *names]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip("npm cannot install the servers (no network?)")
    return folder / "node_modules" / ".bin"


@pytest.mark.slow
def test_the_filesystem_server(npm: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("buy milk")
    entry = {"command": str(npm / "mcp-server-filesystem"), "args": [str(tmp_path)]}
    with servers(files=entry) as running:
        assert "read_text_file" in {tool.name for tool in running.tools()}
        read = called(running, "read_text_file", path=str(tmp_path / "note.txt"))
        assert read.text == "buy milk"
        refused = called(running, "read_text_file", path="/etc/passwd")
        assert refused.is_error
        assert "outside" in refused.text


@pytest.mark.slow
def test_the_everything_server(npm: Path) -> None:
    with McpServers(
        {"mcpServers": {"all": {"command": str(npm / "mcp-server-everything")}}}, timeouts=QUICK
    ) as running:
        (connection,) = running.connections
        assert connection.listing.resources
        assert connection.listing.prompts
        assert called(running, "echo", message="hello").text == "Echo: hello"
        assert called(running, "get-sum", a=2, b=3).text == "The sum of 2 and 3 is 5."
