"""Iterate one step ahead: the next item is made on another thread while this one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order; exceptions surface where their item would have."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as worker:
        coming: Future[T | object] = worker.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = worker.submit(next, items, _END)
            yield item  # type: ignore[misc]  # anything but _END is a T
