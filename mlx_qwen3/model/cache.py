"""What attention remembers: keys and values of every token so far.

`Cache` belongs to one sequence (or one batch of equally long ones) and holds a `LayerCache` per
layer. A layer's cache owns its buffers and the attention over them, so that quantized keys are
never unpacked into a second copy by code that does not know how they are stored.

    LayerCache            16-bit or float buffers; with max_size it forgets all but a window
    └── QuantizedLayerCache   the same, packed to 4 or 8 bits

Buffers grow by a quarter at a time (at least 256 tokens), so that appending n tokens copies a
constant multiple of n, and a step in between writes in place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import mlx.core as mx

from mlx_qwen3.errors import CacheFullError, OptionError
from mlx_qwen3.model.attention import Mask, attend_in_parts

BLOCK = 256  # tokens; the multiple that attention kernels want
# Tokens kept beyond the window, so that a few may be taken back after old ones were forgotten.
TRIM_RESERVE = 64
KV_BITS = (4, 8)


class LayerCache:
    """Keys and values of one layer.

    max_size: tokens attended to (None: all); the first `keep` of the sequence are always among
    them (attention sinks, arXiv:2309.17453), the others are the most recent.
    max_tokens: tokens that may ever be appended; None for no limit.
    score_bytes: of attention scores held at once; None: attention holds none.
    """

    def __init__(
        self,
        *,
        max_size: int | None = None,
        keep: int = 0,
        max_tokens: int | None = None,
        score_bytes: int | None = None,
    ) -> None:
        if max_size is not None and not 0 <= keep < max_size:
            raise OptionError(
                f"a cache of {max_size} tokens cannot keep its first {keep}; keep fewer"
            )
        self.offset = 0
        self.max_size = max_size
        self.keep = keep
        self.max_tokens = max_tokens
        self._score_bytes = score_bytes
        self._buffers: list[mx.array] = []  # each (B, heads, capacity, width)
        self._length = 0  # tokens stored; offset - _length were forgotten

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers, spare capacity included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def capacity(self) -> int:
        """Tokens the buffers hold before they grow."""
        return self._buffers[0].shape[2] if self._buffers else 0

    @property
    def growth(self) -> int:
        """Bytes that the buffers will grow by when one more token is appended."""
        if not self._buffers or self._length < self.capacity:
            return 0
        return self.nbytes // self.capacity * (self._capacity_for(1) - self.capacity)

    @property
    def forgotten(self) -> int:
        """Tokens that were appended and dropped since, to stay within max_size."""
        return self.offset - self._length

    @property
    def trimmable(self) -> int:
        """How many of the newest tokens `trim` can take back."""
        if self.max_size is None or self.offset == self._length:
            return self.offset
        return self._length - self.max_size

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values; return everything kept so far.

        keys, values: (B, num_kv_heads, L, head_dim), model dtype, RoPE applied.
        Returns the same layout with the length kept (offset + L when nothing was forgotten).
        Raises CacheFullError when offset + L exceeds max_tokens.
        """
        kept_keys, kept_values = self._append([keys, values])
        return kept_keys, kept_values

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask
    ) -> mx.array:
        """Append keys and values, then attend to all that is kept.

        queries: (B, num_heads, L, head_dim); keys, values as in `update`; mask from `mask(L)`,
        taken before the call. Returns (B, num_heads, L, head_dim).
        """
        kept_keys, kept_values = self.update(keys, values)
        return attend_in_parts(
            queries,
            kept_keys,
            kept_values,
            scale=scale,
            mask=mask,
            score_bytes=self._score_bytes,
        )

    def mask(self, length: int) -> Mask:
        """Which kept tokens each of the next `length` queries may see.

        None (all), "causal", or a boolean (length, kept + length) array. Depends only on offset,
        max_size and keep: one mask serves all layers that agree in those.
        """
        if self.max_size is None or self.offset + length <= self.max_size:
            return None if length == 1 else "causal"
        forgotten = self.offset - self._kept_before(length)
        index = mx.arange(self._kept_before(length) + length)
        keys = mx.where(index < self.keep, index, index + forgotten)
        queries = mx.arange(self.offset, self.offset + length)[:, None]
        recent = keys > queries - (self.max_size - self.keep)
        return (keys <= queries) & (recent | (keys < self.keep))

    def trim(self, tokens: int) -> None:
        """Take back the newest `tokens`. Raises OptionError beyond `trimmable`."""
        if not 0 <= tokens <= self.trimmable:
            raise OptionError(
                f"cannot take {tokens} tokens back from the cache; at most {self.trimmable}"
            )
        self.offset -= tokens
        self._length -= tokens

    def state(self) -> list[mx.array]:
        """The buffers, for `mx.eval`; each (B, heads, capacity, width)."""
        return self._buffers

    def adopt(self, buffers: Sequence[mx.array], length: int) -> None:
        """Hold the first `length` tokens of a sequence, read before into `buffers`.

        buffers: as `state()` of a cache of the same kind has them, capacity at least `length`.
        """
        self._buffers = list(buffers)
        self.offset = self._length = length

    def fork(self, tokens: int) -> LayerCache:
        """A cache of its own with the first `tokens`, copied, not yet evaluated.

        Raises OptionError for tokens that are not stored (any more).
        """
        if self.forgotten or not 0 <= tokens <= self._length:
            raise OptionError(
                f"cannot copy the first {tokens} of {self.offset} tokens out of the cache; "
                f"{self.forgotten} were forgotten"
            )
        twin = copy.copy(self)
        twin.adopt([], tokens)
        if tokens:
            twin.adopt(
                [_widened(buffer, tokens, tokens + BLOCK) for buffer in self._buffers], tokens
            )
        return twin

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more in buffers that exist. Raises CacheFullError."""
        self._check_room(tokens)
        self._reserve(tokens, self._buffers)

    def advance(self, tokens: int, buffers: Sequence[mx.array]) -> None:
        """`tokens` were appended to the buffers outside, which are these now."""
        self._buffers = list(buffers)
        self._length += tokens
        self.offset += tokens

    def _check_room(self, length: int) -> None:
        if self.max_tokens is not None and self.offset + length > self.max_tokens:
            raise CacheFullError(
                f"the cache is full: {self.offset} tokens in it, {length} more wanted, "
                f"made for {self.max_tokens}"
            )

    def _append(self, new: Sequence[mx.array]) -> list[mx.array]:
        """Write the new columns behind the old ones; return views of all that is kept."""
        length = new[0].shape[2]
        self._check_room(length)
        self._forget(self._length - self._kept_before(length))
        self._reserve(length, new)
        start, self._length = self._length, self._length + length
        self.offset += length
        for buffer, columns in zip(self._buffers, new, strict=True):
            # What fills a buffer takes its place, and would keep alive whatever it is a view of.
            whole = length == buffer.shape[2]
            buffer[:, :, start : self._length] = mx.contiguous(columns) if whole else columns
        return [buffer[:, :, : self._length] for buffer in self._buffers]

    def _kept_before(self, length: int) -> int:
        """How many stored tokens remain once `length` more are about to be appended.

        Old tokens are dropped a block at a time: dropping one per step would copy the window
        every step.
        """
        if self.max_size is None:
            return self._length
        limit = self.max_size + TRIM_RESERVE
        return self._length if self._length + length <= limit + BLOCK else min(self._length, limit)

    def _forget(self, tokens: int) -> None:
        """Drop the oldest `tokens` after the first `keep`."""
        if tokens <= 0:
            return
        kept = [
            mx.concatenate(
                [buffer[:, :, : self.keep], buffer[:, :, self.keep + tokens : self._length]], axis=2
            )
            for buffer in self._buffers
        ]
        self._buffers, self._length = kept, self._length - tokens

    def _reserve(self, length: int, new: Sequence[mx.array]) -> None:
        """Make room for `length` more tokens."""
        if self._length + length <= self.capacity:
            return
        capacity = self._capacity_for(length)
        if not self._buffers:
            self._buffers = [mx.zeros(_shape(n, capacity), n.dtype) for n in new]
            return
        self._buffers = [_widened(buffer, self._length, capacity) for buffer in self._buffers]

    def _capacity_for(self, length: int) -> int:
        """Tokens that grown buffers hold, to take `length` more."""
        grown = self._length + max(length, self._length // 4)
        return -(-grown // BLOCK) * BLOCK


class QuantizedLayerCache(LayerCache):
    """A layer's keys and values in affine groups of 4 or 8 bits along head_dim."""

    def __init__(
        self,
        *,
        bits: int,
        group_size: int = 64,
        max_size: int | None = None,
        keep: int = 0,
        max_tokens: int | None = None,
        score_bytes: int | None = None,
    ) -> None:
        super().__init__(
            max_size=max_size, keep=keep, max_tokens=max_tokens, score_bytes=score_bytes
        )
        self.bits = bits
        self.group_size = group_size

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """As in LayerCache; what comes back went through quantization."""
        packed_keys, packed_values = self._append_packed(keys, values)
        return self._unpack(packed_keys, keys.dtype), self._unpack(packed_values, values.dtype)

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, mask: Mask
    ) -> mx.array:
        """As in LayerCache. Few queries multiply the packed keys; many unpack them first.

        Unpacking costs one pass over the cache; multiplying packed keeps a score for every
        query and key in memory, gigabytes in the prefill of a long prompt.
        """
        if queries.shape[2] > 1:
            return super().attend(queries, keys, values, scale=scale, mask=mask)
        packed_keys, packed_values = self._append_packed(keys, values)
        batch, heads, length, width = queries.shape
        kv_heads = keys.shape[1]
        grouped = (queries * scale).reshape(batch, kv_heads, heads // kv_heads * length, width)
        scores = self._multiply(grouped, packed_keys, transpose=True)
        if isinstance(mask, mx.array):
            scores = mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))
        weights = mx.softmax(scores, axis=-1, precise=True)
        return self._multiply(weights, packed_values, transpose=False).reshape(queries.shape)

    def _append_packed(
        self, keys: mx.array, values: mx.array
    ) -> tuple[list[mx.array], list[mx.array]]:
        packed = [
            *mx.quantize(keys, group_size=self.group_size, bits=self.bits),
            *mx.quantize(values, group_size=self.group_size, bits=self.bits),
        ]
        kept = self._append(packed)
        return kept[:3], kept[3:]

    def _unpack(self, packed: list[mx.array], dtype: mx.Dtype) -> mx.array:
        weight, scales, biases = packed
        unpacked = mx.dequantize(weight, scales, biases, group_size=self.group_size, bits=self.bits)
        return unpacked.astype(dtype)

    def _multiply(self, x: mx.array, packed: list[mx.array], *, transpose: bool) -> mx.array:
        weight, scales, biases = packed
        return mx.quantized_matmul(
            x,
            weight,
            scales,
            biases,
            transpose=transpose,
            group_size=self.group_size,
            bits=self.bits,
        )


class Cache:
    """One LayerCache per layer; what `model(token_ids, cache=...)` takes."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = list(layers)

    @property
    def offset(self) -> int:
        """Tokens seen so far: the position of the next one."""
        return self.layers[0].offset

    @property
    def position(self) -> int | mx.array:
        """offset, as a rotation takes it: an int, or an array in a step that is traced."""
        return self.offset

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def growth(self) -> int:
        """Bytes that all layers will grow by when one more token is appended."""
        return sum(layer.growth for layer in self.layers)

    @property
    def forgotten(self) -> int:
        """Tokens that some layer has dropped, to stay within its max_size."""
        return max(layer.forgotten for layer in self.layers)

    @property
    def trimmable(self) -> int:
        """How many of the newest tokens `trim` can take back."""
        return min(layer.trimmable for layer in self.layers)

    def trim(self, tokens: int) -> None:
        """Take back the newest `tokens`. Raises OptionError beyond `trimmable`."""
        if not 0 <= tokens <= self.trimmable:
            raise OptionError(
                f"cannot take {tokens} tokens back from the cache; at most {self.trimmable}"
            )
        for layer in self.layers:
            layer.trim(tokens)

    def fork(self, tokens: int) -> Cache:
        """An independent cache with the first `tokens`. Raises OptionError for forgotten ones."""
        twin = Cache([layer.fork(tokens) for layer in self.layers])
        mx.eval(twin.state())  # until then both share buffers, and a write would copy them whole
        return twin

    def state(self) -> list[mx.array]:
        """All buffers, for `mx.eval`."""
        return [buffer for layer in self.layers for buffer in layer.state()]

    def reserve(self, tokens: int) -> None:
        """Make room in buffers that exist. Raises CacheFullError."""
        for layer in self.layers:
            layer.reserve(tokens)

    def advance(self, tokens: int, buffers: Sequence[mx.array]) -> None:
        """`tokens` were appended outside: these are the buffers now, in the order of `state`."""
        parts = iter(buffers)
        for layer in self.layers:
            layer.advance(tokens, [next(parts) for _ in layer.state()])


def make_layer_cache(
    *,
    head_dim: int,
    max_size: int | None = None,
    keep: int = 0,
    kv_bits: int | None = None,
    max_tokens: int | None = None,
    score_bytes: int | None = None,
) -> LayerCache:
    """The cache of one layer: plain, or packed to `kv_bits` (4 or 8).

    Raises OptionError for other bits, and for a head_dim no quantization group divides.
    """
    if kv_bits is None:
        return LayerCache(
            max_size=max_size, keep=keep, max_tokens=max_tokens, score_bytes=score_bytes
        )
    if kv_bits not in KV_BITS:
        raise OptionError(f"kv_bits is {kv_bits}; expected 4 or 8 (or nothing, for full precision)")
    return QuantizedLayerCache(
        bits=kv_bits,
        group_size=kv_group_size(head_dim),
        max_size=max_size,
        keep=keep,
        max_tokens=max_tokens,
        score_bytes=score_bytes,
    )


def kv_group_size(head_dim: int) -> int:
    """How many numbers of a packed key share a scale. Raises OptionError where none divides."""
    group_size = next((size for size in (64, 32) if head_dim % size == 0), None)
    if group_size is None:
        raise OptionError(
            f"kv_bits needs a head_dim that 32 divides; this model's is {head_dim}: leave it out"
        )
    return group_size


def _shape(like: mx.array, tokens: int) -> tuple[int, ...]:
    return (like.shape[0], like.shape[1], tokens, like.shape[3])


def _widened(buffer: mx.array, tokens: int, capacity: int) -> mx.array:
    """A copy of the first `tokens` columns with room for `capacity`, in whole blocks."""
    room = -(-capacity // BLOCK) * BLOCK - tokens
    return mx.concatenate(
        [buffer[:, :, :tokens], mx.zeros(_shape(buffer, room), buffer.dtype)], axis=2
    )
