"""What was read once is not read again: caches by the tokens they begin with.

Two tiers of different make, for two different costs.

In memory lie whole caches, each as its last reply left it. The next turn of a conversation takes
its cache out of the store, forgets what the new prompt does not share (a thinking model's
thoughts, for one: the template drops them) and goes on: nothing is copied, however long the
history. Caches cut into shared blocks would cost a copy of the whole history every turn, out of
the blocks and back, and twice the memory while a reply runs. Only where two conversations share
a beginning that both still need (a system prompt with tools, a document) is it copied, once, for
the second one. Which it is, the tokens tell: a prompt that goes on where an entry's prompt ended
continues it, one that parts from it earlier is another conversation. A cache in use can be
copied from too, so that sequences that run at the same time share what they can.

On disk lie blocks of 256 tokens under names that depend on the model, the way it stores columns
and all tokens so far (blocks.py): processes share them without knowing of each other, a
conversation adds only what is new, and forks cost nothing. They are read straight into the
buffers of a new cache, and written by a thread of their own from caches that lie in the store.

Reading the rest of a prompt behind columns that were read earlier, or written while a reply was
generated, gives the logits of reading it all at once up to the rounding of the products, which
depends on how many rows go through a product together. The tokens are the same unless two
candidates are closer than that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import mlx.core as mx

from mlx_qwen3.device import Device
from mlx_qwen3.engine.blocks import Tokens, as_tokens
from mlx_qwen3.engine.disk import DiskTier
from mlx_qwen3.engine.folder import BlockFolder, default_folder
from mlx_qwen3.engine.identity import model_digest
from mlx_qwen3.engine.memory import CacheKind, CachePool, Entry, Match
from mlx_qwen3.engine.settings import PrefixCache
from mlx_qwen3.errors import OptionError
from mlx_qwen3.generation.request import Request
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer

# Tokens of a prompt that are always read: with fewer rows other kernels would compute the first
# token than without a store, and reading them costs about as much as one.
READ_AGAIN = 16
SMALLEST = 32  # tokens shared by chance (a template's opening) are not worth a cache
_PATIENCE = 0.25  # seconds a prompt waits for a block that is just being written
_MEMORY_SHARE = 4  # the store gets one part in so many of what models get at most,
_CONTEXTS = 2  # and no more than so many conversations need that fill the context


class PrefixStore:
    """Keeps the caches of one model between replies; a `CacheStore` of generation.

    Any number of caches may be out at once. memory_bytes: budget of those that are not.
    disk: None keeps nothing there.
    """

    def __init__(
        self, model: Transformer, *, memory_bytes: int, disk: DiskTier | None = None
    ) -> None:
        self._model = model
        self._pool = CachePool(memory_bytes)
        self._disk = disk
        self._lock = threading.RLock()  # reentrant: garbage collection may give a cache back

    @classmethod
    def for_model(cls, model: Transformer, folder: Path, settings: PrefixCache) -> PrefixStore:
        """The store of a model that was loaded from `folder`."""
        memory = settings.memory_bytes
        if memory is None:
            contexts = _CONTEXTS * model.config.context_length * model.kv_bytes_per_token()
            memory = min(Device.current().memory_limit // _MEMORY_SHARE, contexts)
        return cls(model, memory_bytes=memory, disk=_disk_tier(model, folder, settings))

    @property
    def budget(self) -> int:
        """Bytes of memory that may lie in the store."""
        return self._pool.budget

    @property
    def nbytes(self) -> int:
        """Bytes of memory that lie in the store now."""
        with self._lock:
            return self._pool.nbytes

    def lease(self, request: Request) -> Cache:
        """A cache that holds as much of the prompt's beginning as is to be had.

        Raises OptionError for a kind of cache that cannot be.
        """
        kind = CacheKind.of(request)
        prompt = as_tokens(request.prompt_ids)
        limit = len(prompt) - READ_AGAIN
        with self._lock:
            cache = self._find(kind, prompt, limit) if limit >= SMALLEST else None
            if cache is None:
                cache = self._model.make_cache(max_kv_size=kind.max_kv_size, kv_bits=kind.kv_bits)
            self._pool.lend(cache, kind, prompt)
        return cache

    def give_back(self, cache: Cache, token_ids: Sequence[int], *, lasting: int) -> None:
        """Keep a cache that was leased, as far as the budget goes.

        token_ids: what is certain to be in it. lasting: how many of them, from the first on,
        are worth a place on disk.
        """
        with self._lock:
            lent = self._pool.end(cache)
            if lent is None or len(token_ids) < SMALLEST or not _settle(cache, len(token_ids)):
                return
            tokens = as_tokens(token_ids)
            idle = False
            entry = Entry(lent.kind, tokens, min(len(lent.token_ids), len(tokens)), cache)
            if self._disk is not None:
                # What does not fit into memory is kept until it is written, one at a time.
                idle = self._disk.writer.flush(0)
                entry.job = self._disk.save(entry.kind, tokens[:lasting], cache)
            for gone in self._pool.add(entry):
                if not (gone is entry and idle):
                    self._release(gone)

    def flush(self, timeout: float = 60.0) -> bool:
        """Wait until everything is on disk that is meant to be; False if `timeout` s pass first."""
        return self._disk is None or self._disk.writer.flush(timeout)

    def clear(self) -> None:
        """Forget what lies in memory; caches in use, and the disk, stay as they are."""
        with self._lock:
            for gone in self._pool.clear():
                self._release(gone)
        mx.clear_cache()

    def _find(self, kind: CacheKind, prompt: Tokens, limit: int) -> Cache | None:
        match = self._pool.match(kind, prompt, limit)
        tokens = 0 if match is None else match.tokens
        if self._disk is not None:
            stored = self._disk.load(kind, prompt, limit, better_than=max(tokens, SMALLEST))
            if stored is not None:
                return stored
        return None if match is None or tokens < SMALLEST else self._use(match)

    def _use(self, match: Match) -> Cache:
        """Take an entry's cache out of the store, or copy what is shared."""
        if match.entry is None or not match.continues:
            if match.entry is not None:
                self._pool.touch(match.entry)
            return match.cache.fork(match.tokens)
        self._pool.take(match.entry)
        self._release(match.entry)
        match.cache.trim(match.cache.offset - match.tokens)
        return match.cache

    def _release(self, entry: Entry) -> None:
        """Let nobody hold an entry's buffers any longer."""
        if self._disk is not None and entry.job is not None:
            self._disk.writer.withdraw(entry.job, _PATIENCE)


def _settle(cache: Cache, tokens: int) -> bool:
    """Cut a cache to the tokens that are certain, and compute it; False if it is no good.

    An interrupted step may have come through some layers only.
    """
    if any(layer.offset < tokens for layer in cache.layers):
        return False
    with suppress(OptionError, RuntimeError):  # forgotten tokens; a device that gave up
        for layer in cache.layers:
            layer.trim(layer.offset - tokens)
        mx.eval(cache.state())
        return True
    return False


def _disk_tier(model: Transformer, folder: Path, settings: PrefixCache) -> DiskTier | None:
    if not settings.disk_bytes:
        return None
    try:
        where = settings.folder or default_folder()
    except RuntimeError:  # a user without a home, who has no cache either
        return None
    blocks = BlockFolder(where, settings.disk_bytes)
    return DiskTier(model, partial(model_digest, folder), blocks, settings.min_disk_tokens)
