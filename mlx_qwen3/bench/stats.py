"""Medians and spreads of repeated measurements, and ratios of those made in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median, the smallest and the largest of `count` values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """values: at least one."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    @classmethod
    def of_ratios(cls, values: Sequence[float], others: Sequence[float]) -> Spread:
        """Each value over that of the same round, so that a machine which slows down slows both."""
        return cls.of([one / other for one, other in zip(values, others, strict=True)])
