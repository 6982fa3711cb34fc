"""A block: the keys and values of 256 tokens in all layers, as a file.

A block is named after everything that determines its content: the model, how its cache stores
columns, and all tokens up to the block's last (a hash chain, so that a longer prefix extends a
shorter one). Two processes that write the same name write equally good content.

The file is safetensors: "token_ids" (256,) I32, then each layer's buffers (heads, 256, width), and
last "checksum" (1,) U32, the CRC-32 of everything before it. The header follows from the name
and the layout alone, so a file is right if it is byte for byte what is expected up to the data,
and the data has its checksum.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import mlx.core as mx

from mlx_qwen3.model.cache import Cache

# numpy, which owns the bytes of buffers, is imported when a block is first read or written.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tokens: TypeAlias = "array[int]"  # 32 bits each
Bytes: TypeAlias = "NDArray[np.uint8]"

BLOCK_TOKENS = 256
FORMAT = "mlx-qwen3 prefix block 1"
_CHECKSUM_BYTES = 4
_TOKEN_BYTES = 4
_DTYPES = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "U32": mx.uint32,  # packed keys and values
}


def as_tokens(token_ids: Sequence[int]) -> Tokens:
    """Token ids in a form that is sliced, hashed and compared as bytes."""
    return array("i", token_ids)


class BlockError(Exception):
    """A file that is not the block its name promises. Never leaves the engine."""


@dataclass(frozen=True)
class BufferKind:
    """One buffer of a cache: (1, heads, tokens, width) of a dtype in safetensors' spelling."""

    name: str
    dtype: str
    heads: int
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one head's entry for one token."""
        return self.width * _DTYPES[self.dtype].size

    def empty(self, capacity: int) -> mx.array:
        """A buffer of zeros for `capacity` tokens."""
        return mx.zeros((1, self.heads, capacity, self.width), _DTYPES[self.dtype])


@dataclass(frozen=True)
class Layout:
    """How a cache stores a sequence: its buffers in the order of `Cache.state()`."""

    buffers: tuple[BufferKind, ...]

    @classmethod
    def of(cls, cache: Cache) -> Layout:
        """The layout of a cache that holds something, evaluated or not."""
        names = {dtype: name for name, dtype in _DTYPES.items()}
        return cls(
            tuple(
                BufferKind(f"layers.{index}.{part}", names[one.dtype], one.shape[1], one.shape[3])
                for index, layer in enumerate(cache.layers)
                for part, one in enumerate(layer.state())
            )
        )

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in all buffers."""
        return sum(one.heads * one.row_bytes for one in self.buffers)

    @property
    def file_bytes(self) -> int:
        """Size of a block's file."""
        data = BLOCK_TOKENS * (self.token_bytes + _TOKEN_BYTES)
        return len(self.header("0" * 40)) + data + _CHECKSUM_BYTES

    def header(self, name: str) -> bytes:
        """The beginning of the file of the block `name`, its length field included."""
        entries: dict[str, Any] = {"__metadata__": {"format": FORMAT, "block": name}}
        offset = 0
        for tensor, dtype, shape, size in self._tensors():
            entries[tensor] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _tensors(self) -> Iterator[tuple[str, str, list[int], int]]:
        """(name, dtype, shape, bytes) of all tensors in a file, in order."""
        yield "token_ids", "I32", [BLOCK_TOKENS], BLOCK_TOKENS * 4
        for one in self.buffers:
            size = one.heads * BLOCK_TOKENS * one.row_bytes
            yield one.name, one.dtype, [one.heads, BLOCK_TOKENS, one.width], size
        yield "checksum", "U32", [1], _CHECKSUM_BYTES


def block_names(root: str, token_ids: Tokens) -> list[str]:
    """Names of the whole blocks of a sequence: 40 hex digits each.

    root: what the tokens do not tell: the model and its cache's layout.
    """
    names: list[str] = []
    parent = root.encode()
    for start in range(0, len(token_ids) // BLOCK_TOKENS * BLOCK_TOKENS, BLOCK_TOKENS):
        tokens = token_ids[start : start + BLOCK_TOKENS].tobytes()
        names.append(hashlib.blake2b(parent + tokens, digest_size=20).hexdigest())
        parent = names[-1].encode()
    return names


@dataclass(frozen=True)
class HostView:
    """A cache's buffers as bytes that the host reads and writes in place.

    arrays: one (heads, capacity, row_bytes) for each buffer. While a view exists, MLX takes the
    buffers for shared: whoever appends to the cache gets a copy, and the view stays as it is.
    """

    arrays: tuple[Bytes, ...]

    @classmethod
    def of(cls, buffers: Sequence[mx.array]) -> HostView:
        """buffers: each (1, heads, capacity, width); waits until they are computed."""
        views = [buffer.view(mx.uint8) for buffer in buffers]
        mx.eval(views)
        return cls(tuple(_host_array(view)[0] for view in views))

    def segments(self, index: int) -> Iterator[Bytes]:
        """The parts of block `index` in a file's order, each contiguous: (256, row_bytes)."""
        start = index * BLOCK_TOKENS
        for view in self.arrays:
            for head in range(view.shape[0]):
                yield view[head, start : start + BLOCK_TOKENS]


def write_block(stream: IO[bytes], header: bytes, tokens: Tokens, data: Iterable[Bytes]) -> None:
    """Write a block's file into an unbuffered stream. Raises OSError."""
    checksum = 0
    parts = (memoryview(header), memoryview(tokens.tobytes()), *(part.data for part in data))
    for part in parts:
        checksum = zlib.crc32(part, checksum)
        _write(stream, part.cast("B"))
    _write(stream, memoryview(checksum.to_bytes(_CHECKSUM_BYTES, "little")))


def read_block(path: Path, header: bytes, tokens: Tokens, data: Iterable[Bytes]) -> None:
    """Read a block's file into `data`. Raises BlockError when it is not that block, OSError."""
    with path.open("rb", buffering=0) as stream:
        checksum = _expect(stream, header, 0)
        checksum = _expect(stream, tokens.tobytes(), checksum)
        for part in data:
            _fill(stream, part.data.cast("B"))
            checksum = zlib.crc32(part.data, checksum)
        _expect(stream, checksum.to_bytes(_CHECKSUM_BYTES, "little"), 0)
        if stream.read(1):
            raise BlockError(f"{path}: longer than its header says")


def _write(stream: IO[bytes], data: memoryview) -> None:
    while data:  # a write may be cut short, by a full disk for one: the next one then says so
        data = data[stream.write(data) :]


def _expect(stream: IO[bytes], wanted: bytes, checksum: int) -> int:
    """Read what must be there; returns the checksum continued over it."""
    if stream.read(len(wanted)) != wanted:
        raise BlockError(f"{stream.name}: not the block its name promises")
    return zlib.crc32(wanted, checksum)


def _fill(stream: IO[bytes], target: memoryview) -> None:
    while target:
        count = stream.readinto(target)  # type: ignore[attr-defined]
        if not count:
            raise BlockError(f"{stream.name}: cut short")
        target = target[count:]


def _host_array(view: mx.array) -> Bytes:
    """An evaluated array where it lies, writable."""
    import numpy as np

    buffer: Any = view
    return np.asarray(memoryview(buffer))
