"""Who notices what, over real connections, without any model."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_qwen3.heartbeat import MESSAGE, Heartbeat, host_of_rank_0

Messages = dict[int, "queue.Queue[str]"]


class Circle:
    """Heartbeats of one process that take themselves for several."""

    def __init__(self, size: int) -> None:
        self.said: Messages = {rank: queue.Queue() for rank in range(size)}
        self.members: dict[int, Heartbeat] = {}
        self._invitation: queue.Queue[bytes] = queue.Queue()
        threads = [threading.Thread(target=self._join, args=(rank, size)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _join(self, rank: int, size: int) -> None:
        def exchange(message: bytes) -> list[bytes]:
            assert len(message) == MESSAGE
            if rank == 0:
                for _ in range(size):
                    self._invitation.put(message)
            return [self._invitation.get()]

        self.members[rank] = Heartbeat.among(rank, size, exchange, self.said[rank].put)


@pytest.fixture
def circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Circle]:
    hosts = tmp_path / "ring.json"
    hosts.write_text(json.dumps([["127.0.0.1:1"], ["127.0.0.1:2"], ["127.0.0.1:3"]]))
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    circle = Circle(3)
    yield circle
    for member in circle.members.values():
        member.close()


def test_who_is_done_is_not_missed(circle: Circle) -> None:
    circle.members[1].close()
    circle.members[0].close()
    with pytest.raises(queue.Empty):
        circle.said[2].get(timeout=1.5)


def test_who_fails_is_named_to_all(circle: Circle) -> None:
    circle.members[2].close(failed=True)
    assert "rank 2 (127.0.0.1) failed" in circle.said[0].get(timeout=5)
    assert "rank 2 is gone, says rank 0" in circle.said[1].get(timeout=5)


@pytest.mark.parametrize(
    ("environment", "host"),
    [
        ({"MLX_JACCL_COORDINATOR": "10.0.0.1:32323"}, "10.0.0.1"),
        ({"NCCL_HOST_IP": "10.0.0.2"}, "10.0.0.2"),
        ({"MLX_HOSTFILE": "/nowhere"}, ""),
        ({}, ""),
    ],
)
def test_rank_0_is_where_the_launcher_says(environment: dict[str, str], host: str) -> None:
    assert host_of_rank_0(environment) == host


def test_strangers_are_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = tmp_path / "ring.json"
    hosts.write_text(json.dumps(["127.0.0.1:1", "127.0.0.1:2"]))
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    address: queue.Queue[tuple[str, int, str]] = queue.Queue()
    members: queue.Queue[Heartbeat] = queue.Queue()

    def serve() -> None:
        members.put(
            Heartbeat.among(0, 2, lambda sent: [address.put(json.loads(sent)) or b""], print)
        )

    thread = threading.Thread(target=serve)
    thread.start()
    host, port, token = address.get(timeout=5)
    with socket.create_connection((host, port)) as stranger:
        stranger.sendall(b"0" * len(token) + b"\x01")
        assert stranger.recv(1) == b""
    with socket.create_connection((host, port)) as friend:
        friend.sendall(token.encode() + b"\x01")
        assert friend.recv(1) == b"."
        members.get(timeout=5).close()
    thread.join()
