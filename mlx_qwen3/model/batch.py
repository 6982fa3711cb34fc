"""Several sequences in one step: they share every product, and each attends to its own cache.

Caches stay what they are for one sequence, of any kind and length, so a sequence joins or leaves
between two steps without anything being copied or padded. What is not shared is attention: as many
small calls as there are sequences. With one token each, every product takes its rows one by one
(linear.py), so that logits are those of the sequence alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_qwen3.errors import OptionError
from mlx_qwen3.model.attention import Mask
from mlx_qwen3.model.cache import Cache, LayerCache


class BatchedCache(Cache):
    """The caches of the sequences of one step, as `hidden_states` takes them. Owns none of them.

    Made anew when the batch changes; costs a few Python objects a layer.
    """

    def __init__(self, caches: Sequence[Cache]) -> None:
        if not caches:
            raise OptionError("a batch of no caches; expected at least one sequence")
        rows = zip(*(cache.layers for cache in caches), strict=True)
        super().__init__([_BatchedLayerCache(list(row)) for row in rows])
        self._caches = list(caches)

    @property
    def position(self) -> mx.array:
        """The next position of each sequence: (B,) int32."""
        return mx.array([cache.offset for cache in self._caches], dtype=mx.int32)


class _BatchedLayerCache(LayerCache):
    """One layer of every sequence."""

    def __init__(self, rows: Sequence[LayerCache]) -> None:
        super().__init__()
        self._rows = rows

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask
    ) -> mx.array:
        """As in LayerCache, row by row: (B, num_heads, L, head_dim); `mask` is not used."""
        length = queries.shape[2]
        parts = [
            row.attend(
                queries[index : index + 1],
                keys[index : index + 1],
                values[index : index + 1],
                scale=scale,
                mask=row.mask(length),
            )
            for index, row in enumerate(self._rows)
        ]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def mask(self, length: int) -> Mask:
        """Each row has its own."""
        return None

    def state(self) -> list[mx.array]:
        """The buffers of all rows."""
        return [buffer for row in self._rows for buffer in row.state()]
