"""How much of the prompts read so far is kept, and where; how many replies run at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_qwen3.errors import OptionError

DISK_BYTES = 8 * 10**9
# Tokens. Shorter prompts are read again about as fast as their blocks are found and checked.
MIN_DISK_TOKENS = 1024


@dataclass(frozen=True)
class PrefixCache:
    """What `load(..., prefix_cache=...)` takes beside True and False.

    memory_bytes: for caches that no reply is using; None: two whole contexts, and at most a
    quarter of what models get on this device. disk_bytes: for blocks on disk, those of all models
    together; 0: nothing on disk. min_disk_tokens: shorter prompts stay off the disk. folder: None
    is the platform's place for caches, or below MLX_QWEN3_CACHE where that is set. Raises
    OptionError for negative numbers.
    """

    memory_bytes: int | None = None
    disk_bytes: int = DISK_BYTES
    min_disk_tokens: int = MIN_DISK_TOKENS
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "disk_bytes", "min_disk_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 0):
                raise OptionError(f"{name} is {value!r}; expected a whole number from 0 on")


@dataclass(frozen=True)
class EngineSettings:
    """How replies share a model.

    max_running: sequences in a step. max_waiting: those that may wait for a place; more are
    refused. kv_bytes: for keys and values of running sequences; None: what models get on this
    device less the weights. chunk_seconds: how long a prompt may hold up the others' next token.
    stall_seconds: a step that takes longer counts as a failure of the device.
    Raises OptionError for numbers that make no sense.
    """

    max_running: int = 16
    max_waiting: int = 256
    kv_bytes: int | None = None
    chunk_seconds: float = 0.25
    stall_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} is {value!r}; expected at least {least}")


_LEAST = {"max_running": 1, "max_waiting": 0, "kv_bytes": 1, "chunk_seconds": 0, "stall_seconds": 1}
