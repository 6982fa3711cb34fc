"""Clients that are killed, or that do not read: what they leave behind, and what others notice.

Clients and server are processes. In most tests the server's steps take a second, much longer than
the news of a client's death does, so that the steps made after it can be counted.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import PATIENCE, Started, question, started

pytestmark = pytest.mark.slow  # steps take a second

SLOW_STEPS = """\
import time
from mlx_qwen3.engine.batch import Batch
step = Batch.step
def slow(self, slots):
    time.sleep(1.0)
    return step(self, slots)
Batch.step = slow
from mlx_qwen3.cli import main
main()
"""
# Asks what stands on its command line, says so, and prints every line of the answer.
CLIENT = """\
import http.client, sys
port, key, path, body = sys.argv[1:]
there = http.client.HTTPConnection("127.0.0.1", int(port))
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + key}
there.request("POST", path, body, headers)
print("asked", flush=True)
for line in there.getresponse():
    print("read", flush=True)
"""
ENDLESSLY = 100_000  # tokens, more than any of these tests waits for
CHAT = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": ENDLESSLY}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "demo", **CHAT},
    "/v1/completions": {"model": "demo", "prompt": "Go on.", "max_tokens": ENDLESSLY},
    "/v1/messages": question("Go on.", max_tokens=ENDLESSLY),
    "/v1/responses": {"model": "demo", "input": "Go on.", "max_output_tokens": ENDLESSLY},
}


@pytest.fixture(scope="module")
def slow(endless: Path) -> Iterator[Started]:
    """A server whose steps take a second, with room for two replies and for one that waits."""
    command = (sys.executable, "-c", SLOW_STEPS, "serve")
    options = ("--model", f"demo={endless}", "--max-running", "2", "--max-waiting", "1")
    with started(*options, command=command) as server:
        yield server


@pytest.fixture
def fast(endless: Path) -> Iterator[Started]:
    """A server that is as fast as it is."""
    with started("--model", f"demo={endless}", "--log-level", "warning") as server:
        yield server


def metric(server: Started, name: str) -> float:
    """A figure of the server, without labels."""
    with server.client() as client:
        text = client.get("/metrics").text
    return next(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"mlx_qwen3_{name}" and not sample.labels
    )


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextlib.contextmanager
def asking(server: Started, path: str, body: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A process that asks; it has asked when this begins, and is gone when it ends."""
    said = server.said
    arguments = [str(said["port"]), said["key"], path, json.dumps(body)]
    command = [sys.executable, "-c", CLIENT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "asked\n"
            yield process
        finally:
            process.kill()


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait() == -9


def is_running(server: Started, replies: int, waiting: int = 0) -> bool:
    return (metric(server, "running"), metric(server, "queue_depth")) == (replies, waiting)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_killed_client_is_gone_by_the_next_step(slow: Started, path: str, stream: bool) -> None:
    body = BODIES[path] | {"stream": stream}
    with asking(slow, path, body) as process:
        wait_until(lambda: is_running(slow, 1))
        if stream:
            assert process.stdout is not None
            assert process.stdout.readline() == "read\n"
        before = metric(slow, "steps_total")
        killed(process)
        wait_until(lambda: is_running(slow, 0))
    # The one in flight was counted when it began. One more may begin between the look and the kill.
    assert metric(slow, "steps_total") - before <= 1


@pytest.mark.parametrize("stream", [True, False])
def test_others_go_on_meanwhile(slow: Started, stream: bool) -> None:
    path, body = "/v1/chat/completions", BODIES["/v1/chat/completions"]
    with (
        asking(slow, path, body | {"stream": True}) as witness,
        asking(slow, path, body | {"stream": stream}) as process,
    ):
        assert witness.stdout is not None
        assert witness.stdout.readline() == "read\n"
        wait_until(lambda: is_running(slow, 2))
        before = metric(slow, "steps_total")
        killed(process)
        wait_until(lambda: is_running(slow, 1))
        assert metric(slow, "steps_total") - before <= 2
        steps = metric(slow, "steps_total")
        assert witness.stdout.readline() == "read\n"
        wait_until(lambda: metric(slow, "steps_total") >= steps + 2)
        assert is_running(slow, 1)
        killed(witness)
        wait_until(lambda: is_running(slow, 0))


def test_who_dies_while_waiting_leaves_the_queue_and_who_waits_moves_up(slow: Started) -> None:
    path, body = "/v1/chat/completions", BODIES["/v1/chat/completions"]
    with asking(slow, path, body) as first, asking(slow, path, body) as second:
        wait_until(lambda: is_running(slow, 2))
        with asking(slow, path, body | {"stream": True}) as third:
            wait_until(lambda: is_running(slow, 2, waiting=1))
            with slow.client() as client:
                refused = client.post(path, json=body)
            assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
            killed(third)
            wait_until(lambda: is_running(slow, 2))
        with asking(slow, path, body) as fourth:
            wait_until(lambda: is_running(slow, 2, waiting=1))
            before = metric(slow, "steps_total")
            killed(first)
            wait_until(lambda: is_running(slow, 2))
            assert metric(slow, "steps_total") - before <= 2
            killed(fourth)
            killed(second)
            wait_until(lambda: is_running(slow, 0))


# --- clients that do not read


@contextlib.contextmanager
def deaf(server: Started) -> Iterator[socket.socket]:
    """A connection on which a long stream was asked for, and from which nobody reads."""
    wordy = {"stream": True, "n": 4, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(BODIES["/v1/chat/completions"] | wordy).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {server.said['key']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.said["port"]))
        connection.sendall(head.encode() + body)
        yield connection


def test_who_does_not_read_holds_up_nobody(fast: Started) -> None:
    """Enough is written for one who does not read that no buffer of the system holds it."""
    ask = {**BODIES["/v1/chat/completions"], "max_tokens": 40, "temperature": 0.0}
    with fast.client() as client:
        alone = client.post("/v1/chat/completions", json=ask).json()["choices"]
        with deaf(fast) as connection:
            wait_until(lambda: metric(fast, "generated_tokens_total") > 3000)
            assert client.post("/v1/chat/completions", json=ask).json()["choices"] == alone
            assert is_running(fast, 4)
            connection.close()
            wait_until(lambda: is_running(fast, 0))


def test_who_reads_late_gets_all_of_it(fast: Started) -> None:
    """What one does not read for a while is kept for one, in order."""
    ask = {**BODIES["/v1/chat/completions"], "max_tokens": 3000, "seed": 1, "stream": True}
    with fast.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=ask) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            wait_until(lambda: is_running(fast, 0))
            late = [first, *lines]
        with client.stream("POST", "/v1/chat/completions", json=ask) as stream:
            prompt = list(stream.iter_lines())
    assert deltas(late) == deltas(prompt)
    assert late[-2:] == ["data: [DONE]", ""]


def deltas(lines: list[str]) -> list[Any]:
    return [json.loads(line[6:])["choices"] for line in lines if line.startswith("data: {")]


def test_many_are_killed_at_once(fast: Started) -> None:
    path, body = "/v1/chat/completions", BODIES["/v1/chat/completions"]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(asking(fast, path, body | {"stream": bool(number % 2)}))
            for number in range(8)
        ]
        wait_until(lambda: is_running(fast, 8))
        for process in processes:
            process.kill()
        wait_until(lambda: is_running(fast, 0))
    with fast.client() as client:
        assert client.get("/health").json()["status"] == "ready"
        assert client.post(path, json=body | {"max_tokens": 3}).status_code == 200
