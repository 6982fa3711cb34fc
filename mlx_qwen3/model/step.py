"""One decode step: the token of a sequence in, the logits of the next out.

    PlainStep      builds the step's graph anew each time; serves everything
    CompiledStep   replays a graph made once, where building and starting many small operations
                   is most of a step; what it does not serve it leaves to PlainStep

The policy decides which of them a model gets (policy.py).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, ClassVar, Protocol

import mlx.core as mx

from mlx_qwen3.model.attention import Mask
from mlx_qwen3.model.cache import Cache, LayerCache

if TYPE_CHECKING:
    from mlx_qwen3.model.transformer import Transformer

# Steps before compiling: tracing, and a C++ compiler on the CPU, cost as much as some hundred.
COMPILE_AFTER = 256


class DecodeStep(Protocol):
    """token: (1,) int, follows what is in the cache -> logits (1, vocab_size).

    Raises CacheFullError.
    """

    def __call__(self, token: mx.array, cache: Cache) -> mx.array: ...


class PlainStep:
    """Runs the model as it is written."""

    def __init__(self, model: Transformer) -> None:
        self._model = weakref.proxy(model)  # the model owns its step

    def __call__(self, token: mx.array, cache: Cache) -> mx.array:
        """See DecodeStep."""
        logits: mx.array = self._model.logits(self._model.hidden_states(token[None], cache)[:, -1])
        return logits


class CompiledStep(PlainStep):
    """Replays a traced step over the whole buffers of a cache, with the position as an array.

    A trace is made for each capacity of the buffers, which grow by a quarter at a time: a dozen
    traces to 8,000 tokens. after: steps to leave to PlainStep first.
    """

    # MLX finds a trace by the address of the function that made it: one that is gone would lend
    # its trace to the next function at its address. They are small, and hold no weights.
    _functions: ClassVar[list[object]] = []

    def __init__(self, model: Transformer, *, after: int = COMPILE_AFTER) -> None:
        super().__init__(model)
        self.traces = 0
        self._left = after
        function = _traced(weakref.ref(self), weakref.ref(model))
        self._functions.append(function)
        # The weights are inputs: a trace, which MLX keeps, would else keep them in memory.
        self._compiled = mx.compile(function, inputs=model)

    def __call__(self, token: mx.array, cache: Cache) -> mx.array:
        """See DecodeStep."""
        self._left -= 1
        if self._left >= 0 or not all(_is_plain(layer) for layer in cache.layers):
            return super().__call__(token, cache)
        position = mx.array(cache.offset)
        cache.reserve(1)
        logits, buffers = self._compiled(token, position, cache.state())
        cache.advance(1, buffers)
        out: mx.array = logits
        return out


def _is_plain(layer: LayerCache) -> bool:
    return type(layer) is LayerCache and layer.max_size is None and layer.capacity > 0


def _traced(step: weakref.ref[CompiledStep], model: weakref.ref[Transformer]):  # type: ignore[no-untyped-def]
    def run(
        token: mx.array, position: mx.array, buffers: list[mx.array]
    ) -> tuple[mx.array, list[mx.array]]:
        owner, network = step(), model()
        if owner is None or network is None:
            raise RuntimeError("the model of this step is gone")
        owner.traces += 1
        cache = _FixedCache(position, buffers, network.operations.written_out)
        hidden = network.hidden_states(token[None], cache)
        return network.logits(hidden[:, -1]), cache.state()

    return run


class _FixedLayerCache(LayerCache):
    """A layer's buffers at their full capacity; the position is an array, and so is the mask."""

    def __init__(self, position: mx.array, buffers: list[mx.array], written_out: bool) -> None:
        super().__init__()
        self._position = position
        self._buffers = buffers
        self._written_out = written_out

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write one token; return the whole buffers, of which `mask` hides the unused end."""
        self._buffers = [
            mx.slice_update(buffer, new, self._position, axes=(2,))
            for buffer, new in zip(self._buffers, (keys, values), strict=True)
        ]
        return self._buffers[0], self._buffers[1]

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask
    ) -> mx.array:
        """As in LayerCache, for one sequence; without kernels of its own a device adds the mask
        in the product."""
        if not self._written_out or not isinstance(mask, mx.array):
            return super().attend(queries, keys, values, scale=scale, mask=mask)
        kept_keys, kept_values = self.update(keys, values)
        grouped = queries.reshape(1, keys.shape[1], -1, keys.shape[-1])
        scores = mx.addmm(mask, grouped, kept_keys.swapaxes(-1, -2), alpha=scale)
        return (mx.softmax(scores, axis=-1) @ kept_values).reshape(queries.shape)

    def mask(self, length: int) -> Mask:
        """(1, capacity), additive."""
        seen = mx.arange(self.capacity)[None] <= self._position
        return mx.where(seen, 0.0, -mx.inf).astype(self._buffers[0].dtype)


class _FixedCache(Cache):
    def __init__(self, position: mx.array, buffers: list[mx.array], written_out: bool) -> None:
        super().__init__(
            [
                _FixedLayerCache(position, buffers[first : first + 2], written_out)
                for first in range(0, len(buffers), 2)
            ]
        )
        self._position = position

    @property
    def position(self) -> mx.array:
        return self._position
