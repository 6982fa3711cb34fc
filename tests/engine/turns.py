"""Turns of a conversation, taken with a store and without, on tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwen3.engine.blocks import BLOCK_TOKENS
from mlx_qwen3.engine.disk import DiskTier
from mlx_qwen3.engine.folder import BlockFolder
from mlx_qwen3.engine.prefix_store import PrefixStore
from mlx_qwen3.generation.loop import TokenLoop
from mlx_qwen3.generation.request import Request
from mlx_qwen3.generation.sampling import Sampler, SamplingParams
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer

MEBI = 2**20


def text(count: int, seed: int = 0) -> list[int]:
    """Tokens that no two seeds share a beginning of."""
    return [(seed * 97 + 31 + place * (7 + 2 * seed)) % 250 for place in range(count)]


@dataclass(frozen=True)
class Turn:
    """What came of a prompt. cached: tokens of it that were not read."""

    token_ids: list[int]
    cached: int
    cache: Cache


@dataclass(frozen=True)
class Open:
    """A turn under way: the prompt is read, the first token enqueued."""

    loop: TokenLoop
    cache: Cache
    cached: int


def open_turn(
    model: Transformer, prompt: Sequence[int], store: PrefixStore | None = None, **kind: Any
) -> Open:
    """Lease a cache and read what it does not hold."""
    request = Request(tuple(prompt), SamplingParams(temperature=0), 8, **kind)
    cache = model.make_cache(**kind) if store is None else store.lease(request)
    cached = cache.offset
    loop = TokenLoop(model, cache, Sampler(request.params, model.config.vocab_size, 0))
    loop.feed(prompt[cached:])
    return Open(loop, cache, cached)


def take_turn(
    model: Transformer,
    prompt: Sequence[int],
    store: PrefixStore | None = None,
    *,
    count: int = 8,
    **kind: Any,
) -> Turn:
    """Read a prompt, write `count` tokens, give the cache back."""
    turn = open_turn(model, prompt, store, **kind)
    written = [turn.loop.next().token_id for _ in range(count)]
    known = [*prompt, *written][: turn.loop.offset]
    if store is not None:
        store.give_back(turn.cache, known, lasting=len(known))
    return Turn(written, turn.cached, turn.cache)


def memory_store(model: Transformer, budget: int = 64 * MEBI) -> PrefixStore:
    """A store without a disk."""
    return PrefixStore(model, memory_bytes=budget)


def disk_store(
    model: Transformer,
    folder: Path,
    *,
    limit: int = 10**9,
    budget: int = 64 * MEBI,
    identity: str = "a model",
    min_tokens: int = BLOCK_TOKENS,
) -> PrefixStore:
    """A store with blocks in `folder`, as a new process would open it."""
    disk = DiskTier(model, lambda: identity, BlockFolder(folder, limit), min_tokens)
    return PrefixStore(model, memory_bytes=budget, disk=disk)


def files(folder: Path) -> list[Path]:
    """Every file below a folder, those being written included."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def columns(cache: Cache, tokens: int) -> list[mx.array]:
    """The first `tokens` columns of every buffer."""
    return [buffer[:, :, :tokens] for buffer in cache.state()]


def same_columns(one: Cache, other: Cache, tokens: int) -> bool:
    """Whether two caches hold the same bits for the first `tokens`."""
    pairs = zip(columns(one, tokens), columns(other, tokens), strict=True)
    return all(bool(mx.array_equal(a, b)) for a, b in pairs)
