"""The tables of a byte-level BPE as flat arrays, and the merging that looks them up.

    keys       uint64, sorted: right id << 32 | left id, for every pair that merges
    rules      uint64, beside them: rank << 32 | id of the token the pair becomes
    starts     uint32: where each token's spelling begins; one more for the end
    spellings  UTF-8, with 0xFF, which no UTF-8 holds, before each and after the last

They are used as they lie in a file: nothing is parsed, a lookup is a binary search.
"""

import heapq
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, pairwise

_MASK = 2**32 - 1
_BETWEEN = b"\xff"
_REMEMBERED = 2**16  # pairs; a text has far fewer different ones


class Vocabulary:
    """Tokens and merges. Immutable, safe to use from several threads."""

    def __init__(
        self, keys: memoryview, rules: memoryview, starts: memoryview, spellings: bytes
    ) -> None:
        self.keys, self.rules, self.starts, self.spellings = keys, rules, starts, spellings
        self._rule = lru_cache(_REMEMBERED)(self._find_rule)

    @classmethod
    def build(cls, vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> "Vocabulary":
        """From tokenizer.json's own tables, the merges in the order of their rank.

        Raises KeyError for a merge of or into a token that is not there, ValueError when the ids
        are not 0 to n-1 or a spelling is no text.
        """
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError("ids with gaps")
        if not set(map(len, merges)) <= {2}:
            raise ValueError("a merge that is no pair")
        # Little Python runs per merge: a release has 151,387.
        halves = array("I", map(vocab.__getitem__, chain.from_iterable(merges)))
        pairs = memoryview(halves).cast("B").cast("Q")
        merged = map(vocab.__getitem__, map("".join, merges))
        found = [rank << 32 | token_id for rank, token_id in enumerate(merged)]
        order = sorted(range(len(found)), key=pairs.__getitem__)
        keys = array("Q", map(pairs.__getitem__, order))
        rules = array("Q", map(found.__getitem__, order))
        spelled = [token.encode() for token in sorted(vocab, key=vocab.__getitem__)]
        starts = array("I", accumulate((len(one) + 1 for one in spelled), initial=1))
        spellings = _BETWEEN + b"".join(one + _BETWEEN for one in spelled)
        return cls(memoryview(keys), memoryview(rules), memoryview(starts), spellings)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def spelling(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None for ids outside of it."""
        if not 0 <= token_id < len(self):
            return None
        start, after = self.starts[token_id : token_id + 2]
        return self.spellings[start : after - 1].decode()

    def token_id(self, spelling: str) -> int | None:
        """The id of a token, None when there is none. Walks the spellings: for the odd lookup."""
        sought = _BETWEEN + spelling.encode("utf-8", "surrogatepass") + _BETWEEN
        place = self.spellings.find(sought)
        return None if place < 0 else bisect_left(self.starts, place + 1)

    def merge(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Merge the tokens of one word: always the pair of the lowest rank, the leftmost first."""
        ids, size = list(token_ids), len(token_ids)
        after, before = list(range(1, size + 1)), list(range(-1, size - 1))
        rules = (self._rule(left, right) for left, right in pairwise(ids))
        queue = [(rule, place) for place, rule in enumerate(rules) if rule is not None]
        heapq.heapify(queue)
        while queue:
            rule, place = heapq.heappop(queue)
            right = after[place]
            if right == size or self._rule(ids[place], ids[right]) != rule:
                continue  # one of the two has merged with another since, -1 is in no pair
            ids[place], ids[right] = rule & _MASK, -1
            after[place] = after[right]
            if after[place] < size:
                before[after[place]] = place
            for left in (before[place], place):
                right = after[left]
                if left >= 0 and right < size:
                    found = self._rule(ids[left], ids[right])
                    if found is not None:
                        heapq.heappush(queue, (found, left))
        return tuple(token_id for token_id in ids if token_id >= 0)

    def _find_rule(self, left: int, right: int) -> int | None:
        key = right << 32 | left
        place = bisect_right(self.keys, key) - 1  # of a pair listed twice, the last counts
        return self.rules[place] if place >= 0 and self.keys[place] == key else None
