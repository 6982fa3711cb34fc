"""Prompt lookup: what followed the last time the sequence went like this?

Proposals are free; that they are right is learned from every token, proposed or not. How long
the sequence has already repeated an earlier part tells most: a copy that has gone well for
twenty tokens goes on. Parts of the prompt are copied at length; what a reply repeats of itself
are phrases. A copy that was left for a changed word is taken up again behind it.

Source: prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

_LONGEST = 64  # matches beyond are alike
_CANDIDATES = 8  # earlier places compared, the most recent ones
_LEAST_ODDS = 1 / 64  # of a proposal to be reached at all

_TAKEN_UP_WITHIN = 8  # tokens, of both the reply and what it copied
# Odds that the next token is right too, after matches of 1, 2-3, 4-7, ... 64 tokens of what was
# generated, then of what was read.
_PRIOR = (
    *(0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95),
    *(0.2, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98),
)
_READ = len(_PRIOR) // 2
# What they weigh in observations, and what all replies before weigh in one reply: texts differ.
_PRIOR_WEIGHT, _SHARED_WEIGHT = 8.0, 6.0
_REMEMBERED = 256.0  # observations; then older ones count half


class Habits:
    """How often a match of some length went on.

    shared: those of all replies, which one reply's start from; None: these are shared.
    """

    def __init__(self, shared: Habits | None = None) -> None:
        rates = _PRIOR if shared is None else shared.rates()
        weight = _PRIOR_WEIGHT if shared is None else _SHARED_WEIGHT
        self._shared = shared
        self._hits = [odds * weight for odds in rates]
        self._trials = [weight] * len(rates)

    def rates(self) -> list[float]:
        """Odds of a hit, by kind of match."""
        return [hits / trials for hits, trials in zip(self._hits, self._trials, strict=True)]

    def note(self, length: int, read: bool, hit: bool) -> None:
        """After a match of `length` tokens, the next one was as foreseen, or not.

        read: whether the match is with tokens that were read, rather than generated.
        """
        kind = _kind(length, read)
        if self._trials[kind] >= _REMEMBERED:
            self._hits[kind] /= 2
            self._trials[kind] /= 2
        self._trials[kind] += 1
        self._hits[kind] += hit
        if self._shared is not None:
            self._shared.note(length, read, hit)

    def survival(self, length: int, read: bool, skip: int, limit: int) -> list[float]:
        """Odds that tokens skip + 1, skip + 2, ... all are right, while they are noteworthy."""
        rates = self.rates()
        odds, found = 1.0, []
        for index in range(skip + limit):
            odds *= rates[_kind(length + index, read)]
            if index >= skip:
                if odds < _LEAST_ODDS:
                    break
                found.append(odds)
        return found


def _kind(length: int, read: bool) -> int:
    return min(length, _LONGEST).bit_length() - 1 + read * _READ


class Lookup:
    """The tokens of one sequence and where pairs of them stand. Owned by one reply.

    habits: of all replies. match: how many of the last tokens are a repetition, 0 for none.
    """

    def __init__(self, habits: Habits) -> None:
        self._habits = Habits(habits)
        self._tokens: list[int] = []
        self._last: dict[tuple[int, int], int] = {}  # pair -> where it was last followed
        self._earlier: list[int] = []  # by place: where the same pair was followed before; or -1
        self._next = 0  # the place whose token is foreseen
        self._read = 0  # tokens before this place were read
        # A copy that was left: where, when, and how long it had been.
        self._left_at, self._left_when, self._left_length = 0, 0, 0
        self.match = 0

    def read(self, token_ids: Sequence[int]) -> None:
        """Take tokens that were not generated: nothing is learned from them."""
        for token_id in token_ids:
            self._append(token_id)
        self._read = len(self._tokens)
        self._find()

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take generated tokens."""
        for token_id in token_ids:
            hit = self.match > 0 and self._tokens[self._next] == token_id
            if self.match:
                self._habits.note(self.match, self._next < self._read, hit)
            self._append(token_id)
            if hit:
                self._next += 1
                self.match += 1
            else:
                self._leave()
                self._find()
                self._take_up()

    def retract(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self._left_length = 0
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
        if not self.match:
            return []
        return self._habits.survival(self.match, self._next < self._read, skip, limit)

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

    def _leave(self) -> None:
        """The match did not go on: note where it was, if it was long enough to come back to."""
        if self.match > 2:
            self._left_at, self._left_length = self._next, self.match
            self._left_when = len(self._tokens)

    def _take_up(self) -> None:
        """Back to a copy that was left a few tokens ago, if the last token stands there."""
        length = self._left_length // 2
        if length <= self.match or len(self._tokens) - self._left_when > _TAKEN_UP_WITHIN:
            return
        window = self._tokens[self._left_at : self._left_at + _TAKEN_UP_WITHIN]
        del window[len(self._tokens) - 1 - self._left_at :]  # the last token itself
        if self._tokens[-1] in window:
            self._next = self._left_at + window.index(self._tokens[-1]) + 1
            self.match = length

    def _common(self, place: int) -> int:
        """How many tokens before `place` equal the last ones."""
        tokens, length = self._tokens, 0
        while length < min(_LONGEST, place) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        return length
