"""The caches in memory: those that lie ready, and those that replies are using."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

from mlx_qwen3.engine.blocks import Tokens
from mlx_qwen3.engine.writer import Job
from mlx_qwen3.generation.request import Request
from mlx_qwen3.model.cache import Cache

# Tokens a template may put behind the last message and drop from the history again: the opening
# of a turn, an empty thought. Beside them, those that are read again in any case.
_OPENING = 32


@dataclass(frozen=True)
class CacheKind:
    """What `Transformer.make_cache` is asked for: caches of two kinds never replace each other."""

    max_kv_size: int | None = None
    kv_bits: int | None = None

    @classmethod
    def of(cls, request: Request) -> CacheKind:
        """The kind a request needs."""
        return cls(request.max_kv_size, request.kv_bits)


@dataclass(eq=False)
class Entry:
    """A cache that lies ready, and the tokens in it.

    prompt_tokens: how many of them were a prompt. job: what is being written of it.
    """

    kind: CacheKind
    token_ids: Tokens
    prompt_tokens: int
    cache: Cache
    job: Job | None = None


@dataclass(frozen=True)
class Lent:
    """A cache in use. It is the borrower's: if that forgets to give it back, it is gone."""

    cache: weakref.ref[Cache]
    kind: CacheKind
    token_ids: Tokens  # of the prompt


@dataclass(frozen=True)
class Match:
    """A cache that begins with the first `tokens` of a prompt.

    entry: where it lies; None: a reply is using it. continues: the prompt goes on where the
    entry's ended, so that nobody else needs it: take it. Else it is to be copied from.
    """

    tokens: int
    cache: Cache
    entry: Entry | None = None
    continues: bool = False


@dataclass
class CachePool:
    """budget: bytes that the caches lying ready may take; the least recently used goes first."""

    budget: int
    entries: list[Entry] = field(default_factory=list)  # the most recently used last
    lent: list[Lent] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches that lie ready."""
        return sum(entry.cache.nbytes for entry in self.entries)

    def match(self, kind: CacheKind, prompt: Tokens, limit: int) -> Match | None:
        """The cache that begins with most of prompt[:limit]."""
        found = [self._offer(entry, prompt, limit) for entry in self.entries if entry.kind == kind]
        for lent in self.lent:
            cache = lent.cache()
            if cache is not None and lent.kind == kind and not cache.forgotten:
                common = min(common_prefix(lent.token_ids, prompt[:limit]), cache.offset)
                found.append(Match(common, cache))
        # Of equal ones that which costs no copy.
        offers = [match for match in found if match is not None]
        return max(offers, key=lambda one: (one.tokens, one.continues), default=None)

    def take(self, entry: Entry) -> None:
        """An entry is not for others any more."""
        self.entries = [one for one in self.entries if one is not entry]

    def touch(self, entry: Entry) -> None:
        """An entry was of use just now."""
        if entry in self.entries:
            self.entries = [*(one for one in self.entries if one is not entry), entry]

    def lend(self, cache: Cache, kind: CacheKind, prompt: Tokens) -> None:
        """A cache goes out to a reply."""
        self.lent = [one for one in self.lent if one.cache() is not None]
        self.lent.append(Lent(weakref.ref(cache), kind, prompt))

    def end(self, cache: Cache) -> Lent | None:
        """A cache comes back; None for one that was not lent."""
        mine = next((one for one in self.lent if one.cache() is cache), None)
        self.lent = [one for one in self.lent if one is not mine and one.cache() is not None]
        return mine

    def add(self, entry: Entry) -> list[Entry]:
        """Keep a cache; returns the entries that went for it, itself perhaps among them."""
        gone = [one for one in self.entries if _contains(entry, one)]
        self.entries = [one for one in self.entries if one not in gone]
        self.entries.append(entry)
        while self.nbytes > self.budget:
            gone.append(self.entries.pop(0))
        return gone

    def clear(self) -> list[Entry]:
        """Forget all caches that lie ready; returns them."""
        gone, self.entries = self.entries, []
        return gone

    def _offer(self, entry: Entry, prompt: Tokens, limit: int) -> Match | None:
        common = common_prefix(entry.token_ids, prompt[:limit])
        continues = entry.prompt_tokens - common <= _OPENING
        if continues and len(entry.token_ids) - common <= entry.cache.trimmable:
            return Match(common, entry.cache, entry, continues=True)
        return None if entry.cache.forgotten else Match(common, entry.cache, entry)


def common_prefix(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences begin with alike."""
    same, differ = 0, min(len(one), len(other)) + 1  # one[:same] is alike, one[:differ] is not
    while differ - same > 1:
        middle = (same + differ) // 2
        if one[same:middle].tobytes() == other[same:middle].tobytes():
            same = middle
        else:
            differ = middle
    return same


def _contains(entry: Entry, other: Entry) -> bool:
    """Whether all that `other` offers can be copied out of `entry`."""
    length = len(other.token_ids)
    return (
        entry.kind == other.kind
        and not entry.cache.forgotten
        and entry.token_ids[:length] == other.token_ids
    )
