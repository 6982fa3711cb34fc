"""An orderly end when the program is told to go."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_LEAVE = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def leave_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program, so that what it started ends with it.

    Raises SystemExit(128 + signal), as a shell counts. A second signal ends it at once.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for each in _LEAVE:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _LEAVE}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
