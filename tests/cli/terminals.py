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
import tempfile
import termios
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple

import pyte

PATIENCE = 60.0  # seconds; only a failing test waits that long
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


class Run(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Run]

# The child makes the terminal its own, so that Ctrl-C reaches it as a signal.
_OWN_TERMINAL = """\
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
"""
_READS_KEYS = "\x1b[?2004h"  # bracketed paste is on
_UNWANTED = ("COLUMNS", "LINES", "NO_COLOR", "DISPLAY", "WAYLAND_DISPLAY")


class Terminal:
    """`mlx-qwen3 ARGS` on a terminal.

    start: what is run instead, a Python program. env: set beside what this process has.
    screen: everything it has shown so far, escape sequences included, "\\r\\n" as "\\n".
    """

    def __init__(
        self,
        *args: str,
        columns: int = 100,
        rows: int = 40,
        start: str = "from mlx_qwen3.cli import main; main()",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._fd, child = pty.openpty()
        self.columns, self.rows = columns, rows
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._state = tempfile.TemporaryDirectory()  # no history of anybody's is read or written
        kept = {name: text for name, text in os.environ.items() if name not in _UNWANTED}
        own = {"TERM": "xterm-256color", "XDG_STATE_HOME": self._state.name}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL + start, *args],
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
            env={**kept, **own, **(env or {})},
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
        self.process.kill()
        self.process.wait()
        os.close(self._fd)
        self._state.cleanup()

    @property
    def screen(self) -> str:
        return self._raw.decode(errors="replace").replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """What a person sees now: the rows of the screen and what has scrolled off it."""
        picture = self.picture()
        rows = [*picture.history.top, *(picture.buffer[row] for row in range(self.rows))]
        return ["".join(row[x].data for x in range(self.columns)).rstrip() for row in rows]

    def picture(self) -> pyte.HistoryScreen:
        """The screen as a terminal emulator draws it."""
        picture = pyte.HistoryScreen(self.columns, self.rows, history=10_000, ratio=1)
        pyte.ByteStream(picture).feed(self._raw)
        return picture

    def resize(self, columns: int, rows: int) -> None:
        """Change the size; the program gets its signal."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.columns, self.rows = columns, rows

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

    def wait_for_prompt(self) -> str:
        """Wait until keys are read for a message; return what lies between."""
        between = self.wait_for(_READS_KEYS)
        self.wait_for(">")
        return between

    def interrupt(self, shows: str) -> None:
        """Press Ctrl-C until the text appears.

        Python's readline misses a signal that comes between two keys, and a test is that fast.
        """
        deadline = time.monotonic() + PATIENCE
        while shows not in self.screen[self._seen :] and time.monotonic() < deadline:
            self.type(CTRL_C)
            if not self._read(time.monotonic() + 3) and self.process.poll() is not None:
                break
        self.wait_for(shows)

    def wait_for_end(self) -> int:
        """Wait until the command has ended; return its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        """Take what was written; False at the end of it, or of our patience."""
        ready, _, _ = select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))
        chunk = b""
        if ready:
            with contextlib.suppress(OSError):  # how Linux says that the other end is closed
                chunk = os.read(self._fd, 65536)
        self._raw += chunk
        return bool(chunk)
