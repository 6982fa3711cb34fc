"""A command that several processes run together: joined at its start, ended together."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_qwen3.model.peers import Peers


@contextlib.contextmanager
def joined(parallel: str | None) -> Iterator[Peers | None]:
    """The processes of this command, watched; None for a command that is one alone.

    Where one of them ends or hangs, all end within seconds, with exit code 1.
    """
    if parallel is None:
        yield None
        return
    from mlx_qwen3.heartbeat import Heartbeat
    from mlx_qwen3.model.parallel import refuse_unknown
    from mlx_qwen3.model.peers import Peers

    refuse_unknown(parallel)
    peers = Peers.join()
    heartbeat = Heartbeat.among(peers.rank, peers.size, peers.exchange, _end)
    try:
        yield peers
    except BaseException as error:
        _let_heartbeat_speak(error)
        heartbeat.close(failed=True)
        raise
    heartbeat.close()


def is_silent(peers: Peers | None) -> bool:
    """Whether another process prints what this one would."""
    return peers is not None and peers.rank != 0


def _let_heartbeat_speak(error: BaseException) -> None:
    """MLX, too, notices that a connection is lost, but not whose."""
    from time import sleep

    from mlx_qwen3.heartbeat import INTERVAL

    if isinstance(error, RuntimeError):
        sleep(2 * INTERVAL)


def _end(message: str) -> None:
    """A collective that waits for somebody who is gone cannot be interrupted otherwise."""
    from mlx_qwen3.cli import PROGRAM

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        print(f"{PROGRAM}: error: {message}", file=sys.stderr, flush=True)
    os._exit(1)
