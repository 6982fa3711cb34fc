"""What several commands show: sizes, tables, a download bar."""

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def size_text(size: int) -> str:
    """A file size as shops and Finder count: "4.6 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def memory_text(size: int) -> str:
    """An amount of memory as machines are sold: "16.0 GiB"."""
    return f"{size / 2**30:.1f} GiB"


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns. On a terminal, lines are cut at its edge, which costs only the last column."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    styled = sys.stdout.isatty()
    edge = shutil.get_terminal_size().columns if styled else sys.maxsize
    for number, row in enumerate((header, *rows)):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = "  ".join(cells).rstrip()
        line = line if len(line) <= edge else line[: edge - 1] + "…"
        print(f"\x1b[1m{line}\x1b[0m" if styled and number == 0 else line)


@contextlib.contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress callback for hub.resolve that draws a bar on stderr.

    The bar appears with the first bytes, so that a model which is here already shows none. None
    where stderr is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    bar = _DownloadBar(name)
    try:
        yield bar
    finally:
        bar.stop()


class _DownloadBar:
    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # several files arrive at once
        self._progress: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if self._progress is None:
                self._start()
            self._progress.update(self._task, completed=done, total=total)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True, markup=False)
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(self._name, total=None)
        self._progress.start()

    def stop(self) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
