"""A server inside an app: the handshake, and the end of the app, with real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mlx_qwen3._version import __version__
from mlx_qwen3.errors import OptionError
from mlx_qwen3.server import sidecar
from tests.server.running import PATIENCE, SERVE, Started, alive, question, ready_line, started

# Starts a server as its child, hands its ready line on, and lives until it is killed.
PARENT = """\
import os, subprocess, sys, time
options = [option.replace("PID", str(os.getpid())) for option in sys.argv[1:]]
pipe = subprocess.PIPE if "--exit-with-stdin" in options else subprocess.DEVNULL
child = subprocess.Popen(options, stdin=pipe, stdout=subprocess.PIPE, text=True)
line = child.stdout.readline()
print(line, end="", flush=True)
time.sleep(600 if line else 0)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Started]:
    """A sidecar on a free port, whose parent is this process."""
    with started("--parent-pid", str(os.getpid())) as found:
        yield found


def test_the_ready_line_says_all_it_takes(server: Started) -> None:
    said = server.said
    assert said["pid"] == server.process.pid
    assert said["version"] == __version__
    assert said["models"] == ["demo"]
    assert said["socket"] is None
    assert said["url"] == f"http://127.0.0.1:{said['port']}"
    with server.client() as client:
        answer = client.post("/v1/messages", json=question("What is 2 + 3?"))
    assert answer.json()["content"][0]["type"] == "text"


def test_the_key_was_made_for_it_and_is_needed(server: Started) -> None:
    assert len(server.said["key"]) >= 32
    with httpx.Client(base_url=server.said["url"], trust_env=False) as stranger:
        assert stranger.get("/v1/models").status_code == 401
        assert stranger.get("/health").json() == {"status": "ready"}


def test_the_ready_line_is_all_of_stdout() -> None:
    with started() as server:
        server.signal(signal.SIGTERM)
        rest, errors = server.process.communicate(timeout=PATIENCE)
    assert (rest, server.process.returncode) == ("", 0)
    assert server.said["key"] not in errors


def test_a_given_key_is_kept() -> None:
    with started(env={**os.environ, "MLX_QWEN3_API_KEY": "from-the-app"}) as server:
        assert server.said["key"] == "from-the-app"


def test_a_unix_socket_in_a_private_folder() -> None:
    with started("--unix-socket", "auto") as server:
        path = Path(server.said["socket"])
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.said["port"] is None
        with server.client() as client:
            assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
            named = client.get("/v1/models", headers={"Host": "whatever.an.app.calls.it"})
            assert named.status_code == 200
            del client.headers["x-api-key"]
            assert client.get("/v1/models").status_code == 401
        server.signal(signal.SIGTERM)
        assert server.end() == 0
        assert not path.parent.exists()


def test_a_socket_left_behind_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    with started("--unix-socket", str(path)) as server, server.client() as client:
        assert client.get("/health").status_code == 200
        second = subprocess.run(
            [*SERVE, "--unix-socket", str(path)], capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert "another server listens" in second.stderr
        assert client.get("/health").status_code == 200
        server.signal(signal.SIGKILL)


@pytest.mark.parametrize(
    "options",
    [
        ["--parent-pid", "PID"],
        ["--exit-with-stdin"],
        ["--parent-pid", "PID", "--unix-socket", "auto"],
    ],
)
def test_it_ends_when_its_parent_is_killed(options: list[str]) -> None:
    place = [] if "--unix-socket" in options else ["--port", "0"]
    command = [sys.executable, "-c", PARENT, *SERVE, *place, "--ready-json", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        said = ready_line(parent)
        assert alive(said["pid"])
        parent.kill()
        parent.wait()
        wait_for_end(said["pid"])
        if said["socket"] is not None:
            assert not Path(said["socket"]).parent.exists()


def test_it_ends_with_a_process_that_is_not_its_parent() -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        with started("--parent-pid", str(other.pid)) as server:
            other.kill()  # and is a zombie until it is waited for
            assert server.end() == 0
        other.wait()


def test_it_ends_while_a_stream_runs(endless: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        options = ("--parent-pid", str(other.pid), "--model", f"demo={endless}")
        with started(*options) as server, server.client() as client:
            body = question("Go on.", stream=True, max_tokens=100_000)
            with client.stream("POST", "/v1/messages", json=body) as stream:
                assert stream.status_code == 200
                assert "message_start" in next(stream.iter_lines())
                other.kill()
                assert server.end() == 0
        other.wait()


def test_it_ends_while_it_is_not_ready_yet() -> None:
    command = [*SERVE, "--port", "0", "--ready-json", "--exit-with-stdin"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < deadline, "it outlived its parent"
        time.sleep(0.05)


@pytest.mark.parametrize("pid", ["1", "0", "-1", "99999999", "99999999999999999999"])
def test_a_parent_must_run(pid: str) -> None:
    done = subprocess.run(
        [*SERVE, "--port", "0", "--ready-json", "--parent-pid", pid],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("mlx-qwen3: error: ")


def test_this_process_is_not_its_own_parent() -> None:
    with pytest.raises(OptionError, match="expected a process that runs"):
        sidecar.check_parent(os.getpid())


def test_where_the_kernel_wakes_nobody_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise PermissionError

    monkeypatch.setattr(sidecar, "_woken", refuse)
    monkeypatch.setattr(sidecar, "POLL", 0.01)
    ended = threading.Event()
    with subprocess.Popen(["sleep", "600"]) as other:
        sidecar.when_parent_ends(other.pid, ended.set)
        assert not ended.wait(0.1)
        other.kill()
        other.wait()
        assert ended.wait(PATIENCE)


def test_a_process_that_is_gone_already() -> None:
    with subprocess.Popen(["true"]) as other:
        other.wait()
    sidecar.wait_for_end(other.pid)  # and returns


def test_the_ready_line_is_one_line_of_json(tmp_path: Path) -> None:
    from mlx_qwen3.server.listener import listen_unix

    listener = listen_unix(str(tmp_path / "s"))
    line = sidecar.ready_line(listener, "key", ["a\nb"])
    listener.close()
    assert "\n" not in line
    assert json.loads(line)["models"] == ["a\nb"]
