"""Processes that work together notice when one of them is gone.

MLX's collectives wait for ever for a process that hangs, and an error of theirs does not say who
is missing. So every process keeps a connection to rank 0 beside them, over which both sides say
every half second that they are alive.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

INTERVAL = 0.5  # seconds between two signs of life
LIMIT = 3.0  # seconds without one, after which a process counts as hanging
GRACE = 1.0  # seconds that a process gets to end by itself when another one has failed
_ALIVE, _DONE, _FAILED, _LOST = b".", b"q", b"f", b"l"  # the last with the rank that is lost
_TOKEN = 16  # bytes that only processes of this job know
MESSAGE = 128  # bytes of an invitation

# (message): somebody is gone. Called on the heartbeat's thread, once.
OnLost = Callable[[str], None]


@dataclass
class _Line:
    """A connection to another process."""

    rank: int
    socket: socket.socket
    heard: float = field(default_factory=time.monotonic)

    def say(self, sign: bytes) -> None:
        with contextlib.suppress(OSError):  # reading from it says so, too
            self.socket.sendall(sign)

    @property
    def name(self) -> str:
        try:
            return f"rank {self.rank} ({self.socket.getpeername()[0]})"
        except OSError:
            return f"rank {self.rank}"


class Heartbeat:
    """One thread that listens to the others: to all of them on rank 0, to rank 0 elsewhere."""

    def __init__(self, rank: int, lines: list[_Line], on_lost: OnLost) -> None:
        self._rank = rank
        self._lines = lines
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._selector = selectors.DefaultSelector()
        for line in lines:
            line.socket.settimeout(INTERVAL)
            self._selector.register(line.socket, selectors.EVENT_READ, line)
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def among(
        cls, rank: int, size: int, exchange: Callable[[bytes], list[bytes]], on_lost: OnLost
    ) -> Heartbeat:
        """Connect to the others. exchange: everybody's MESSAGE bytes, by rank.

        Raises OSError when they cannot be reached.
        """
        if rank != 0:
            invitation = json.loads(exchange(b" " * MESSAGE)[0])
            return cls(rank, [_accept(invitation, rank)], on_lost)
        token = secrets.token_hex(_TOKEN)
        with _listen() as server:
            address = [*server.getsockname()[:2], token]
            exchange(json.dumps(address).encode().ljust(MESSAGE))
            return cls(rank, _await(server, token, size), on_lost)

    def close(self, *, failed: bool = False) -> None:
        """Say that this process is done, or has failed and said why, and listen no more."""
        self._stopped.set()
        self._thread.join()
        for line in self._lines:
            line.say(_FAILED if failed else _DONE)
            line.socket.close()
        self._lines.clear()
        self._selector.close()

    def _watch(self) -> None:
        said = 0.0
        while self._lines and not self._stopped.is_set():
            if time.monotonic() - said >= INTERVAL:
                said = time.monotonic()
                for line in self._lines:
                    line.say(_ALIVE)
            lost = self._listen_once()
            if lost is not None and not self._stopped.is_set():
                return self._report(*lost)

    def _listen_once(self) -> tuple[int, str] | None:
        """Who is gone, and what to say of it."""
        for key, _ in self._selector.select(INTERVAL / 2):
            verdict = self._hear(key.data)
            if verdict is not None:
                return verdict
        silent = [line for line in self._lines if time.monotonic() - line.heard > LIMIT]
        if silent:
            return silent[0].rank, f"{silent[0].name} has not answered for {LIMIT:g} s"
        return None

    def _hear(self, line: _Line) -> tuple[int, str] | None:
        try:
            signs = line.socket.recv(64)
        except OSError:
            signs = b""
        line.heard = time.monotonic()
        if _LOST in signs:
            rank = signs[signs.index(_LOST) + 1]
            return rank, f"rank {rank} is gone, says rank 0"
        if _FAILED in signs:
            self._stopped.wait(GRACE)  # most likely this process is about to fail alike
            return line.rank, f"{line.name} failed, and says why itself"
        if _DONE in signs:
            self._selector.unregister(line.socket)
            self._lines.remove(line)
            line.socket.close()
        elif not signs:
            return line.rank, f"{line.name} has ended"
        return None

    def _report(self, rank: int, message: str) -> None:
        if self._rank == 0:
            for line in self._lines:
                if line.rank != rank:
                    line.say(_LOST + bytes([rank]))
        self._on_lost(f"{message}; this ends the job on all hosts")


def host_of_rank_0(environment: Mapping[str, str]) -> str:
    """The address under which the launcher's settings say rank 0 is reached; "" if they do not."""
    for name in ("MLX_JACCL_COORDINATOR", "NCCL_HOST_IP"):
        if environment.get(name):
            return environment[name].rpartition(":")[0] or environment[name]
    try:
        with open(environment["MLX_HOSTFILE"], encoding="utf-8") as file:
            first = json.load(file)[0]
        return str(first if isinstance(first, str) else first[0]).rpartition(":")[0]
    except (KeyError, OSError, ValueError, IndexError):
        return ""


def _listen() -> socket.socket:
    """On the address that the others know, and no other."""
    host = host_of_rank_0(os.environ) or socket.gethostbyname(socket.gethostname())
    return socket.create_server((host, 0))


def _accept(invitation: list[str], rank: int) -> _Line:
    host, port, token = invitation
    connection = socket.create_connection((host, int(port)), timeout=LIMIT)
    connection.sendall(token.encode() + bytes([rank]))
    return _Line(0, connection)


def _await(server: socket.socket, token: str, size: int) -> list[_Line]:
    """Everybody but rank 0. Strangers are sent away."""
    lines: dict[int, _Line] = {}
    server.settimeout(2 * LIMIT)
    while len(lines) < size - 1:
        connection, _ = server.accept()
        connection.settimeout(LIMIT)
        said = connection.recv(2 * _TOKEN + 1, socket.MSG_WAITALL)
        if hmac.compare_digest(said[:-1], token.encode()):
            lines[said[-1]] = _Line(said[-1], connection)
        else:
            connection.close()
    return list(lines.values())
