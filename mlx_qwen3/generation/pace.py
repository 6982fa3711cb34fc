"""What verifying proposals costs on this machine, and whether it pays: the reason to stop.

Everything is counted in plain steps (one token, nothing proposed), so that a busy machine or a
long context changes both sides of a comparison. Medians, because on a busy machine any step may
take ten times as long as the next.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

# Expected tokens per plain step's time from which a burst is worth its risk.
_WORTH = 1.15
# Plain steps that may be lost: at first, earned by every token, and saved up at most.
_START, _EARNED, _MOST = 4.0, 0.015, 6.0
_PLAIN_SAMPLES, _BURST_SAMPLES = 21, 5
_FORGET_EVERY = 256  # plain steps; a burst found too slow is tried again some day
_SHARE_AWAY = 0.25  # of a step's time: a caller that takes longer spoils the measurement


class Pace:
    """Costs of bursts by their rows, learned as they run, and the credit to try them.

    prior: rows -> cost in plain steps, until bursts of about so many rows were measured.
    max_rows: rows of a burst at most.
    """

    def __init__(self, prior: Callable[[int], float], max_rows: int) -> None:
        self.max_rows = max_rows
        self._prior = prior
        self._plain: deque[float] = deque(maxlen=_PLAIN_SAMPLES)  # seconds
        self._bursts: defaultdict[int, deque[float]] = defaultdict(
            lambda: deque(maxlen=_BURST_SAMPLES)
        )
        self._costs: dict[int, float] = {}
        self._steps = 0
        self._credit = _START

    def cost(self, rows: int) -> float:
        """Of a burst, in plain steps."""
        return self._costs.get(_size(rows), self._prior(rows))

    def best(self, survival: Sequence[float]) -> int:
        """How many tokens to propose; 0 where no number of them pays.

        survival: the odds that the first token is accepted, the first two, and so on.
        """
        best, best_rate = 0, _WORTH
        expected, done = 1.0, 0
        most = min(len(survival), self.max_rows - 1)
        rows = 2
        while done < most:
            count = min(rows - 1, most)
            expected += sum(survival[done:count])
            cost = self.cost(count + 1)
            if expected / cost > best_rate and cost - 1 <= self._credit:
                best, best_rate = count, expected / cost
            done, rows = count, rows * 2
        return best

    @property
    def exhausted(self) -> bool:
        """Whether not even the shortest burst may be tried now."""
        return self._credit < self.cost(2) - 1

    def note_plain(self, seconds: float, away: float) -> None:
        """A plain step that overlapped with the one before took so long.

        away: seconds of it in which the caller did something else.
        """
        self._steps += 1
        self._credit = min(self._credit + _EARNED, _MOST)
        if self._steps % _FORGET_EVERY == 0:
            self._forget()
        if away <= _SHARE_AWAY * seconds:
            self._plain.append(seconds)

    def note_burst(
        self, rows: int, tokens: int, seconds: float, away: float, plain: int = 0
    ) -> None:
        """A step of so many rows that plain decoding would not have made gave so many tokens.

        plain: plain steps that the seconds include as well.
        """
        cost = self.cost(rows) if rows > 1 else 1.0
        if self._plain and away <= _SHARE_AWAY * seconds:
            found = max(1.0, seconds / statistics.median(self._plain) - plain)
            if rows > 1:
                samples = self._bursts[_size(rows)]
                samples.append(found)
                self._costs[_size(rows)] = statistics.median(samples)
                found = min(found, 4 * cost)  # another process, rather than the burst itself
            cost = found
        self._credit = min(self._credit + tokens - cost, _MOST)

    def _forget(self) -> None:
        """Expect again what was expected at first of bursts that were slower."""
        for size, cost in self._costs.items():
            if cost > self._prior(1 << size):
                self._costs[size] = (cost + self._prior(1 << size)) / 2
                self._bursts[size].clear()


def _size(rows: int) -> int:
    """2, 3 to 4, 5 to 8, ... rows are alike."""
    return (rows - 1).bit_length()
