"""Hosts with networks of their own, joined by a cable: here, namespaces and a pair of devices."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.jobs import end, start_ring
from tests.distributed.test_jobs import generating

ADDRESSES = ("10.213.77.1", "10.213.77.2")  # of a range for private use
HOSTS = ("mlxqwen3-a", "mlxqwen3-b")

pytestmark = pytest.mark.slow


def ip(*arguments: str) -> bool:
    """Whether it could be done: it takes root, on Linux."""
    return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0


@pytest.fixture
def hosts() -> Iterator[tuple[str, ...]]:
    """The names of two namespaces that reach each other, and nothing else."""
    if shutil.which("ip") is None or not all(ip("netns", "add", host) for host in HOSTS):
        pytest.skip("network namespaces need Linux, iproute2 and root")
    try:
        ip("link", "add", HOSTS[0], "type", "veth", "peer", "name", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            assert ip("link", "set", host, "netns", host)
            assert ip("-n", host, "address", "add", f"{address}/24", "dev", host)
            assert ip("-n", host, "link", "set", host, "up")
        yield HOSTS
    finally:
        for host in HOSTS:
            ip("netns", "delete", host)


def job(hosts: tuple[str, ...], model: Path, folder: Path) -> list[tuple[int, str, str]]:
    command = [sys.executable, *generating(model, "tensor", "--max-tokens", "8", "--json")]
    commands = [["ip", "netns", "exec", host, *command] for host in hosts]
    return end(start_ring(commands, [f"{address}:32323" for address in ADDRESSES], folder))


def test_hosts_on_a_network_work_together(
    hosts: tuple[str, ...], checkpoint: Path, tmp_path: Path
) -> None:
    first, second = job(hosts, checkpoint, tmp_path)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert '"completion_tokens": 8' in first[1]
    assert second[1] == ""
