"""Writes blocks to disk beside everything else: nobody waits for it.

A thread exists while there is something to write. It reads the buffers of caches that lie in
the store; a cache that is wanted again is taken out of its hands (`withdraw`).
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlx_qwen3.engine.blocks import BLOCK_TOKENS, Bytes, HostView, Layout, Tokens, write_block
from mlx_qwen3.engine.folder import BlockFolder

EXIT_SECONDS = 3.0  # how long the end of the process waits for what is not yet written
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """The whole blocks of one sequence. view is given up as soon as it is no longer needed."""

    model: str
    names: Sequence[str]
    token_ids: Tokens
    layout: Layout
    view: HostView | None
    withdrawn: bool = False


@dataclass
class _Work:
    """What thread and callers share, under `changed`."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: deque[Job] = field(default_factory=deque)
    current: Job | None = None
    running: bool = False


class WithdrawnError(Exception):
    """The cache that is being written is wanted elsewhere."""


class Writer:
    """The queue in front of a BlockFolder. Safe to use from several threads."""

    def __init__(self, folder: BlockFolder) -> None:
        self._folder = folder
        self._work = _Work()
        # The thread holds this object while it works, so that at any other time than the
        # process's exit there is nothing left to wait for.
        weakref.finalize(self, _finish, self._work)

    def submit(self, job: Job) -> None:
        """Write a job's blocks when its turn comes."""
        with self._work.changed:
            self._work.waiting.append(job)
            if not self._work.running:
                self._work.running = self._start()

    def _start(self) -> bool:
        """Start the thread; an interpreter that is ending refuses, and there is no later."""
        try:
            threading.Thread(target=self._run, name="prefix-writer", daemon=True).start()
        except RuntimeError:
            self._work.waiting.clear()
            return False
        return True

    def withdraw(self, job: Job, patience: float) -> None:
        """Let go of a job's buffers; wait at most `patience` seconds for that.

        What was not written by then never is, unless it is submitted again.
        """
        with self._work.changed:
            job.withdrawn = True
            if job in self._work.waiting:
                self._work.waiting.remove(job)
                job.view = None
            self._work.changed.wait_for(lambda: self._work.current is not job, patience)

    def flush(self, timeout: float) -> bool:
        """Wait until everything is written; False when that takes longer (seconds)."""
        return _wait(self._work, timeout)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._write(job)
            except WithdrawnError:
                pass
            except OSError as error:
                _log.info("prefixes are not kept: %s", error)
            job.view = None

    def _next(self) -> Job | None:
        with self._work.changed:
            self._work.current = self._work.waiting.popleft() if self._work.waiting else None
            self._work.running = self._work.current is not None
            self._work.changed.notify_all()
            return self._work.current

    def _write(self, job: Job) -> None:
        done = 0
        while done < len(job.names) and self._write_block(job, done):
            done += 1
        self._folder.touch(job.model, job.names[:done])
        self._folder.shrink()

    def _write_block(self, job: Job, index: int) -> bool:
        """See to it that a block is there; False where there is no room for it."""
        name = job.names[index]
        if self._folder.path(job.model, name).is_file():
            return True
        header = job.layout.header(name)
        tokens = job.token_ids[index * BLOCK_TOKENS :][:BLOCK_TOKENS]
        return self._folder.write(
            job.model,
            name,
            job.layout.file_bytes,
            lambda stream: write_block(stream, header, tokens, _segments(job, index)),
        )


def _segments(job: Job, index: int) -> Iterator[Bytes]:
    """A block's data, a part at a time. Raises WithdrawnError when it is wanted elsewhere."""
    view = job.view
    if view is None:
        raise WithdrawnError
    for segment in view.segments(index):
        if job.withdrawn:
            raise WithdrawnError
        yield segment


def _wait(work: _Work, timeout: float) -> bool:
    with work.changed:
        return work.changed.wait_for(lambda: not work.running, timeout)


def _finish(work: _Work) -> None:
    """The process ends: wait a while, then give up what is left."""
    deadline = time.monotonic() + EXIT_SECONDS
    if _wait(work, EXIT_SECONDS):
        return
    with work.changed:
        work.waiting.clear()
        if work.current is not None:
            work.current.withdrawn = True
    _wait(work, max(deadline + 1 - time.monotonic(), 0))
