"""How a command is run: within the test, or on a terminal, driven as a person would."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

PATIENCE = 60.0  # seconds; only a failing test waits that long
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


class Run(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Run]

# The child makes the terminal its own, so that Ctrl-C reaches it as a signal.
_START = """\
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mlx_qwen3.cli import main
main()
"""


class Terminal:
    """`mlx-qwen3 ARGS` on a terminal of 100 columns.

    screen: everything it has shown so far, escape sequences included, "\\r\\n" as "\\n".
    """

    def __init__(self, *args: str) -> None:
        self._fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *args],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        )
        os.close(child)
        self._raw = b""
        self._seen = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    @property
    def screen(self) -> str:
        return self._raw.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str) -> str:
        """Wait until `text` appears behind what was waited for before; return what lies between."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.screen.find(text, self._seen)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} did not appear in {self.screen[self._seen :]!r}")
        between = self.screen[self._seen : found]
        self._seen = found + len(text)
        return between

    def interrupt(self, shows: str) -> None:
        """Press Ctrl-C until the text appears.

        Python's readline misses a signal that comes between two keys, and a test is that fast.
        """
        deadline = time.monotonic() + PATIENCE
        while shows not in self.screen[self._seen :] and time.monotonic() < deadline:
            self.type(CTRL_C)
            if not self._read(time.monotonic() + 3) and self._process.poll() is not None:
                break
        self.wait_for(shows)

    def wait_for_end(self) -> int:
        """Wait until the command has ended; return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self._process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        """Take what was written; False at the end of it, or of our patience."""
        ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
        chunk = b""
        if ready:
            with contextlib.suppress(OSError):  # how Linux says that the other end is closed
                chunk = os.read(self._fd, 65536)
        self._raw += chunk
        return bool(chunk)
