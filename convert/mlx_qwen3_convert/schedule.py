"""In which order to fetch files so that as few as possible are held at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

Need = frozenset[str]


@dataclass(frozen=True)
class Step:
    """Fetch these files, work on these items, let go of those files."""

    fetch: tuple[str, ...]
    items: tuple[int, ...]
    drop: tuple[str, ...]


def schedule(needs: Sequence[Need], present: Collection[str] = ()) -> Iterator[Step]:
    """Steps that work on every item once, each with all its files there.

    needs: the files of each item. present: files that are there already. A file is fetched once,
    and kept until no item needs it. Which order holds the fewest is a hard problem in general;
    shards are a chain, or nearly, and there the greedy choice is best: finish what is begun.
    """
    waiting: dict[Need, list[int]] = {}
    for item, need in enumerate(needs):
        waiting.setdefault(need, []).append(item)
    held = set(present)
    while waiting:
        need = _next(waiting, held)
        fetch = tuple(sorted(need - held))
        items = tuple(waiting.pop(need))
        held |= need
        wanted = frozenset().union(*waiting)
        drop = tuple(sorted(held - wanted))
        held -= set(drop)
        yield Step(fetch, items, drop)


def _next(waiting: Mapping[Need, object], held: Collection[str]) -> Need:
    """What fetches the fewest files, then leaves the fewest; of equals, the least entangled."""
    uses = Counter(file for need in waiting for file in need)

    def cost(need: Need) -> tuple[int, int, int, list[str]]:
        left = sum(uses[file] > (file in need) for file in need.union(held))
        return len(need.difference(held)), left, sum(uses[file] for file in need), sorted(need)

    return min(waiting, key=cost)


def most_held(
    steps: Sequence[Step], sizes: Mapping[str, int], present: Collection[str] = ()
) -> int:
    """The most bytes that the files of these steps take at any time."""
    held, most = set(present), 0
    for step in steps:
        held |= set(step.fetch)
        most = max(most, sum(sizes[file] for file in held))
        held -= set(step.drop)
    return most
