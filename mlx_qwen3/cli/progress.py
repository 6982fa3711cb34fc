"""A progress bar for long work that is counted in steps."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def work_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A callback that takes (steps done, steps in all) and draws them, with the time left.

    On stderr and only where that is a terminal. The bar appears with the first step and is gone
    at the end, whatever ends it.
    """
    bar = _Bar(name) if sys.stderr.isatty() else None
    try:
        yield bar or _nothing
    finally:
        if bar is not None:
            bar.stop()


def _nothing(done: int, total: int) -> None:
    """Drawn where nobody watches."""


class _Bar:
    def __init__(self, name: str) -> None:
        self._name = name
        self._progress: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None:
            self._start(total)
        self._progress.update(0, completed=done, total=total)

    def _start(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, markup=False)
        self._progress = Progress(*columns, console=console, transient=True)
        self._progress.add_task(self._name, total=total)
        self._progress.start()

    def stop(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
