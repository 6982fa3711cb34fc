"""The caches of one model on disk: written a block at a time, read back into a new cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import astuple
from functools import cached_property

import mlx.core as mx

from mlx_qwen3.engine.blocks import (
    BLOCK_TOKENS,
    BlockError,
    HostView,
    Layout,
    Tokens,
    block_names,
    read_block,
)
from mlx_qwen3.engine.folder import BlockFolder
from mlx_qwen3.engine.memory import CacheKind
from mlx_qwen3.engine.writer import Job, Writer
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer

_log = logging.getLogger(__name__)


class DiskTier:
    """Reads and writes the prefixes of one model.

    identity: the model's digest, asked for once, when it is first needed.
    min_tokens: shorter sequences are neither written nor looked for.
    """

    def __init__(
        self,
        model: Transformer,
        identity: Callable[[], str],
        folder: BlockFolder,
        min_tokens: int,
    ) -> None:
        self.folder = folder
        self.writer = Writer(folder)
        self._model = model
        self._ask_identity = identity
        self._min_tokens = min_tokens
        self._layouts: dict[CacheKind, Layout] = {}

    def load(self, kind: CacheKind, prompt: Tokens, limit: int, better_than: int) -> Cache | None:
        """A cache with as many whole blocks of prompt[:limit] as are here.

        None where they are no more than `better_than` tokens. Blocks that turn out to be
        damaged are removed, and what follows them is not used.
        """
        if len(prompt) < self._min_tokens or not self._identity:
            return None
        layout = self._layout(kind)
        names = block_names(self._root(kind, layout), prompt[: self._readable(kind, limit)])
        names = names[: self.folder.present(self._identity, names)]
        if len(names) * BLOCK_TOKENS <= better_than:
            return None
        cache, blocks = self._read(kind, layout, names, prompt)
        return cache if blocks * BLOCK_TOKENS > better_than else None

    def save(self, kind: CacheKind, token_ids: Tokens, cache: Cache) -> Job | None:
        """Have the whole blocks of a cache written; None where there is nothing to write."""
        if len(token_ids) < self._min_tokens or cache.forgotten or not self._identity:
            return None
        layout = self._layout(kind)
        names = block_names(self._root(kind, layout), token_ids)
        job = Job(self._identity, names, token_ids, layout, HostView.of(cache.state()))
        self.writer.submit(job)
        return job

    def _read(
        self, kind: CacheKind, layout: Layout, names: list[str], prompt: Tokens
    ) -> tuple[Cache, int]:
        """A cache with the blocks of these names up to the first bad one, and their number."""
        buffers = [one.empty(_capacity(len(prompt))) for one in layout.buffers]
        view = HostView.of(buffers)
        count = 0
        while count < len(names) and self._read_block(layout, names[count], count, prompt, view):
            count += 1
        self.folder.touch(self._identity, names[:count])
        del view  # else the first step would copy the buffers
        cache = self._new_cache(kind)
        for layer, stored in zip(cache.layers, _by_layer(layout, buffers), strict=True):
            layer.adopt(stored, count * BLOCK_TOKENS)
        return cache, count

    def _read_block(
        self, layout: Layout, name: str, index: int, prompt: Tokens, view: HostView
    ) -> bool:
        tokens = prompt[index * BLOCK_TOKENS :][:BLOCK_TOKENS]
        path = self.folder.path(self._identity, name)
        try:
            read_block(path, layout.header(name), tokens, view.segments(index))
        except BlockError as error:
            _log.info("removed: %s", error)
            self.folder.discard(self._identity, name)
            return False
        except OSError as error:  # removed by another process just now, perhaps
            _log.debug("not read: %s", error)
            return False
        return True

    def _readable(self, kind: CacheKind, limit: int) -> int:
        """Tokens a new cache can hold without forgetting any."""
        sizes = [layer.max_size for layer in self._new_cache(kind).layers]
        return min([limit, *(size for size in sizes if size is not None)])

    def _new_cache(self, kind: CacheKind) -> Cache:
        return self._model.make_cache(max_kv_size=kind.max_kv_size, kv_bits=kind.kv_bits)

    def _layout(self, kind: CacheKind) -> Layout:
        """What the model writes into such a cache: asked with one token, and not computed."""
        if kind not in self._layouts:
            cache = self._new_cache(kind)
            self._model.hidden_states(mx.array([[0]]), cache)
            self._layouts[kind] = Layout.of(cache)
        return self._layouts[kind]

    def _root(self, kind: CacheKind, layout: Layout) -> str:
        what = (self._identity, astuple(kind), astuple(layout))
        return hashlib.sha256(repr(what).encode()).hexdigest()

    @cached_property
    def _identity(self) -> str:
        """The model's digest; "" where its folder cannot be read any more."""
        try:
            return self._ask_identity()
        except (OSError, CheckpointError) as error:
            _log.info("prefixes stay off the disk: %s", error)
            return ""


def _capacity(prompt: int) -> int:
    """Tokens to make room for: the prompt, and a reply of some length."""
    return (prompt // BLOCK_TOKENS + 2) * BLOCK_TOKENS


def _by_layer(layout: Layout, buffers: list[mx.array]) -> list[list[mx.array]]:
    """The buffers of each layer, in order."""
    layers: dict[str, list[mx.array]] = {}
    for kind, buffer in zip(layout.buffers, buffers, strict=True):
        layers.setdefault(kind.name.rpartition(".")[0], []).append(buffer)
    return list(layers.values())
