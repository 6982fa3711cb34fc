"""Memory of the C allocator, where it keeps what nobody uses any more."""

from __future__ import annotations

import ctypes


def release() -> None:
    """Give what is free back to the system.

    glibc keeps freed blocks that lie between used ones, and MLX's arrays on a CPU are such blocks:
    a server would keep the memory of its busiest minute. Elsewhere this does nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
