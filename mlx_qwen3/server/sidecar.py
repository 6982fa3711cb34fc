"""A server inside an app: told where it is in one line, and gone when the app is.

    mlx-qwen3 serve --port 0 --ready-json --parent-pid PID

Nothing here waits on the event loop: a parent can die while a model loads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from mlx_qwen3._version import __version__
from mlx_qwen3.errors import OptionError
from mlx_qwen3.server.listener import Listener

POLL = 0.5  # seconds between two looks, where the system does not wake us
KEY_BYTES = 32


def one_time_key() -> str:
    """A key for one run, of characters that headers and shells leave alone."""
    return secrets.token_urlsafe(KEY_BYTES)


def ready_line(listener: Listener, key: str | None, models: Sequence[str]) -> str:
    """The one line on stdout: where the server is, and what it takes to talk to it."""
    said = {
        "url": listener.url,
        "port": listener.port,
        "socket": None if listener.path is None else os.fspath(listener.path),
        "key": key,
        "pid": os.getpid(),
        "version": __version__,
        "models": list(models),
    }
    return json.dumps(said)


def check_parent(pid: int) -> None:
    """Raise OptionError unless a process of this number runs now."""
    if pid <= 1 or pid == os.getpid() or not _exists(pid):
        raise OptionError(f"--parent-pid {pid}: expected a process that runs, as this one's parent")


def when_parent_ends(pid: int, leave: Callable[[], None]) -> threading.Thread:
    """Call `leave` on a thread of its own once the process is gone."""
    return _later(lambda: wait_for_end(pid), leave, "parent")


def when_stdin_ends(leave: Callable[[], None], stdin: TextIO | None = None) -> threading.Thread:
    """Call `leave` on a thread of its own once nobody holds the other end of stdin."""
    stream = sys.stdin if stdin is None else stdin

    def drain() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(stream.fileno(), 4096):
                pass

    return _later(drain, leave, "stdin")


def wait_for_end(pid: int) -> None:
    """Return when the process has ended, or has handed us to another parent.

    Asks the kernel to be woken (Linux: a pidfd; macOS: kqueue's NOTE_EXIT), which no reused
    number and no zombie can mislead; looks twice a second where that is refused.
    """
    ours = os.getppid() == pid
    wait = _waiter(pid)
    while not (wait(POLL) or (ours and os.getppid() != pid)):
        pass


def _waiter(pid: int) -> Callable[[float], bool]:
    """A function that waits for so many seconds at most and says whether the process ended."""
    try:
        return _woken(pid)
    except OSError:  # gone already, or none of our business: then we look
        return functools.partial(_look, pid)


if sys.platform == "darwin":

    def _woken(pid: int) -> Callable[[float], bool]:
        queue = select.kqueue()
        kinds = select.KQ_EV_ADD | select.KQ_EV_ONESHOT
        event = select.kevent(pid, select.KQ_FILTER_PROC, kinds, select.KQ_NOTE_EXIT)
        queue.control([event], 0)
        return lambda seconds: bool(queue.control(None, 1, seconds))

else:

    def _woken(pid: int) -> Callable[[float], bool]:
        poll = select.poll()
        poll.register(os.pidfd_open(pid), select.POLLIN)
        return lambda seconds: bool(poll.poll(seconds * 1000))


def _look(pid: int, seconds: float) -> bool:
    time.sleep(seconds)
    return not _exists(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's, or a sandbox that does not tell
        return True
    return True


def _later(wait: Callable[[], None], leave: Callable[[], None], name: str) -> threading.Thread:
    def run() -> None:
        wait()
        leave()

    thread = threading.Thread(target=run, name=f"mlx-qwen3-{name}", daemon=True)
    thread.start()
    return thread
