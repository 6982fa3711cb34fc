"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes

import pytest

from mlx_qwen3.engine import heap
from mlx_qwen3.server.memory import resident_bytes


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps freed blocks like this"
)
def test_what_lies_between_used_blocks_goes_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size, count = 64 * 1024, 2000
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for number in range(count - 1):  # the last one stays, above all others
        libc.free(blocks[number])
    held = resident_bytes()
    heap.release()
    left = resident_bytes()
    libc.free(blocks[-1])
    assert held is not None
    assert left is not None
    assert held - left > size * count // 2
