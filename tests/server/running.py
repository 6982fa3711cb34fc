"""The whole server: in a thread of the test, or as the process that people start."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from mlx_qwen3.server.app import create_app
from mlx_qwen3.server.listener import listen_tcp
from mlx_qwen3.server.run import WayOut, run
from mlx_qwen3.server.settings import ServerSettings
from mlx_qwen3.service import Service

PATIENCE = 60.0  # seconds; only a failing test waits that long
SERVE = (sys.executable, "-m", "mlx_qwen3.cli", "serve")
DEMO = {"demo": "demo"}


@contextlib.contextmanager
def running(
    settings: ServerSettings | None = None, service: Service | None = None
) -> Iterator[httpx.Client]:
    """A client of a server in a thread, ready. It is asked as its own name, and with its key."""
    settings = settings or ServerSettings()
    app = create_app(service or Service(DEMO), settings)
    way_out, ready = WayOut(listen_tcp("127.0.0.1", 0)), threading.Event()
    arguments = (app, way_out, settings, ready.set)
    thread = threading.Thread(target=run, args=arguments, name="server")
    thread.start()
    headers = {} if settings.api_key is None else {"x-api-key": settings.api_key}
    try:
        if not ready.wait(PATIENCE):
            raise AssertionError("the server did not get ready")
        with httpx.Client(
            base_url=way_out.listener.url, headers=headers, timeout=PATIENCE, trust_env=False
        ) as client:
            yield client
    finally:
        if way_out.server is not None:
            way_out.server.hurry()
        thread.join(PATIENCE)
        way_out.listener.close()


@dataclass
class Started:
    """A server's process. said: its ready line, with --ready-json."""

    process: subprocess.Popen[str]
    said: dict[str, Any]

    def client(self) -> httpx.Client:
        """A client with the key, over the socket where there is one."""
        path = self.said["socket"]
        transport = None if path is None else httpx.HTTPTransport(uds=path)
        headers = {"x-api-key": self.said["key"]}
        return httpx.Client(
            base_url=self.said["url"],
            headers=headers,
            transport=transport,
            timeout=PATIENCE,
            trust_env=False,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; the exit code."""
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def started(*options: str, command: Sequence[str] = SERVE, **more: Any) -> Iterator[Started]:
    """`mlx-qwen3 serve --port 0 --ready-json OPTIONS`, ready; killed in the end if need be."""
    place = () if "--unix-socket" in options else ("--port", "0")
    process = subprocess.Popen(
        [*command, *place, "--ready-json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    with process:
        try:
            yield Started(process, ready_line(process))
        finally:
            process.kill()


def ready_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The first line on stdout. Fails with what stands on stderr when there is none."""
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda out=process.stdout: lines.put(out.readline())).start()
    line = lines.get(timeout=PATIENCE)
    if not line:
        raise AssertionError(process.stderr.read() if process.stderr else "no ready line")
    said = json.loads(line)
    assert isinstance(said, dict)
    return said


def alive(pid: int) -> bool:
    """Whether a process runs: there, and no zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def question(text: str, **more: Any) -> dict[str, Any]:
    """A body for /v1/messages."""
    message = {"role": "user", "content": text}
    return {"model": "demo", "max_tokens": 200, "messages": [message], **more}
