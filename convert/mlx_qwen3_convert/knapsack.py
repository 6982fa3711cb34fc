"""One choice for each group, the least harm within a budget: a multiple-choice knapsack.

Solved exactly by dynamic programming over the budget, in the largest unit that divides all
sizes. Only where that makes more than `MAX_UNITS` units are sizes rounded up to a coarser one,
which may leave some ten-thousandths of the budget unspent, never overspend it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlx_qwen3.errors import OptionError

MAX_UNITS = 20_000


def choose(
    sizes: Sequence[Sequence[int]], harms: Sequence[Sequence[float]], budget: int
) -> list[int]:
    """The index of each group's choice, with the least sum of harms and sizes within budget.

    sizes, harms: for each group, of each of its choices. Raises OptionError when even the
    smallest choices exceed the budget.
    """
    smallest = [min(group) for group in sizes]
    room = budget - sum(smallest)
    if room < 0:
        raise OptionError(f"the budget is {budget} bytes, the smallest choices take {-room} more")
    extra = [[size - low for size in group] for group, low in zip(sizes, smallest, strict=True)]
    room = min(room, sum(max(group) for group in extra))
    unit = max(math.gcd(*(size for group in extra for size in group)), 1)
    unit = max(unit, math.ceil(room / MAX_UNITS))
    steps = [[-(-size // unit) for size in group] for group in extra]
    return _solve(steps, harms, room // unit)


def _solve(
    steps: Sequence[Sequence[int]], harms: Sequence[Sequence[float]], room: int
) -> list[int]:
    """Sizes in units. least[n]: the least harm of the groups so far within n units."""
    least = np.zeros(room + 1)
    chosen = []
    for group_steps, group_harms in zip(steps, harms, strict=True):
        options = np.full((len(group_steps), room + 1), np.inf)
        for row, (size, harm) in enumerate(zip(group_steps, group_harms, strict=True)):
            if size <= room:
                options[row, size:] = least[: room + 1 - size] + harm
        chosen.append(options.argmin(axis=0))
        least = options.min(axis=0)
    return _walk_back(chosen, steps, room)


def _walk_back(
    chosen: Sequence[np.ndarray[tuple[int], np.dtype[np.intp]]],
    steps: Sequence[Sequence[int]],
    room: int,
) -> list[int]:
    picks = []
    for table, group_steps in zip(reversed(chosen), reversed(steps), strict=True):
        pick = int(table[room])
        picks.append(pick)
        room -= group_steps[pick]
    return picks[::-1]
