"""Jobs of several processes on this machine, as MLX's launcher starts them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
Process = subprocess.Popen[str]


def start(commands: Sequence[Sequence[str]], folder: Path) -> list[Process]:
    """One process per command (Python's arguments), in a ring over the loopback device."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(len(commands))]
    return start_ring([[sys.executable, *command] for command in commands], addresses, folder)


def start_ring(
    commands: Sequence[Sequence[str]], addresses: Sequence[str], folder: Path
) -> list[Process]:
    """One process per command, which listens at its address ("host:port")."""
    hosts = folder / "ring.json"
    hosts.write_text(json.dumps([[address] for address in addresses]))
    return [
        subprocess.Popen(
            list(command),
            env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def end(processes: Sequence[Process]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; those that do not end are killed, and it fails."""
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *one) for process, one in zip(processes, ended, strict=True)]
