"""Prompt lookup: what followed the last time the sequence went like this?

Proposals are free; that they are right is learned from every token, proposed or not. How long
the sequence has already repeated an earlier part tells most: a copy that has gone well for
twenty tokens goes on.

Source: prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 64  # matches beyond are alike
_CANDIDATES = 8  # earlier places compared, the most recent ones
_LEAST_ODDS = 1 / 64  # of a proposal to be reached at all

# Odds that the next token is right too, after matches of 1, 2-3, 4-7, ... 64 tokens; and how
# many observations that is worth.
_PRIOR = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.97)
_PRIOR_WEIGHT = 8.0
_REMEMBERED = 256.0  # observations; then older ones count half


class Habits:
    """How often a match of some length went on: learned over all replies of a model."""

    def __init__(self) -> None:
        self._hits = [odds * _PRIOR_WEIGHT for odds in _PRIOR]
        self._trials = [_PRIOR_WEIGHT] * len(_PRIOR)

    def note(self, length: int, hit: bool) -> None:
        """After a match of `length` tokens, the next one was as foreseen, or not."""
        kind = min(length, _LONGEST).bit_length() - 1
        if self._trials[kind] >= _REMEMBERED:
            self._hits[kind] /= 2
            self._trials[kind] /= 2
        self._trials[kind] += 1
        self._hits[kind] += hit

    def survival(self, length: int, skip: int, limit: int) -> list[float]:
        """Odds that tokens skip + 1, skip + 2, ... all are right, while they are noteworthy."""
        rates = [hits / trials for hits, trials in zip(self._hits, self._trials, strict=True)]
        odds, found = 1.0, []
        for index in range(skip + limit):
            odds *= rates[min(length + index, _LONGEST).bit_length() - 1]
            if index >= skip:
                if odds < _LEAST_ODDS:
                    break
                found.append(odds)
        return found


class Lookup:
    """The tokens of one sequence and where pairs of them stand. Owned by one reply.

    match: how many of the last tokens are a repetition, 0 for none.
    """

    def __init__(self, habits: Habits) -> None:
        self._habits = habits
        self._tokens: list[int] = []
        self._last: dict[tuple[int, int], int] = {}  # pair -> where it was last followed
        self._earlier: list[int] = []  # by place: where the same pair was followed before; or -1
        self._next = 0  # the place whose token is foreseen
        self.match = 0

    def read(self, token_ids: Sequence[int]) -> None:
        """Take tokens that were not generated: nothing is learned from them."""
        for token_id in token_ids:
            self._append(token_id)
        self._find()

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take generated tokens."""
        for token_id in token_ids:
            hit = self.match > 0 and self._tokens[self._next] == token_id
            if self.match:
                self._habits.note(self.match, hit)
            self._append(token_id)
            if hit:
                self._next += 1
                self.match += 1
            else:
                self._find()

    def retract(self, count: int) -> None:
        """Forget the last `count` tokens."""
        for _ in range(count):
            earlier = self._earlier.pop()
            pair = self._pair()
            self._tokens.pop()
            if pair is None:
                continue
            if earlier < 0:
                del self._last[pair]
            else:
                self._last[pair] = earlier
        if count:
            self._find()

    def survival(self, skip: int, limit: int) -> list[float]:
        """Odds of what `foreseen` gives; [] without a match."""
        return self._habits.survival(self.match, skip, limit) if self.match else []

    def foreseen(self, skip: int, count: int) -> list[int]:
        """The tokens expected next, without the first `skip`. A repetition repeats itself."""
        tokens, start = self._tokens, self._next
        ahead = tokens[start : start + skip + count]
        known = len(tokens) - start
        for index in range(len(ahead), skip + count):
            ahead.append(ahead[index - known])
        return ahead[skip:]

    def _append(self, token_id: int) -> None:
        self._tokens.append(token_id)
        pair = self._pair()
        if pair is None:
            self._earlier.append(-1)
            return
        self._earlier.append(self._last.get(pair, -1))
        self._last[pair] = len(self._tokens)

    def _pair(self) -> tuple[int, int] | None:
        return (self._tokens[-2], self._tokens[-1]) if len(self._tokens) > 1 else None

    def _find(self) -> None:
        """Match anew: the longest repetition among the latest places of the last pair."""
        self.match, self._next = 0, 0
        place = self._earlier[-1] if self._earlier else -1
        for _ in range(_CANDIDATES):
            if place < 0:
                break
            length = self._common(place)
            if length > self.match:
                self.match, self._next = length, place
            place = self._earlier[place - 1]

    def _common(self, place: int) -> int:
        """How many tokens before `place` equal the last ones."""
        tokens, length = self._tokens, 0
        while length < min(_LONGEST, place) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        return length
