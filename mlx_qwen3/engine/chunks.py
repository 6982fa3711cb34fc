"""How many tokens of a prompt are read at once, between two steps of the others."""

from __future__ import annotations

from mlx_qwen3.generation.loop import PREFILL_CHUNK

SMALLEST = 32  # tokens; below, the weights are read for too few of them
_FIRST = 256  # tokens, before anything is known
_ALONE = 4  # times as long where nobody waits for the next token


class ChunkLength:
    """Learns from the last chunks what fits into `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rate: float | None = None  # tokens/s

    def tokens(self, pending: int, *, alone: bool) -> int:
        """How many of so many pending tokens to read now."""
        length = self._length(self._seconds * (_ALONE if alone else 1))
        # A rest of a few tokens would cost as much as they do with this chunk, twice.
        return pending if pending < length + SMALLEST else length

    def took(self, tokens: int, seconds: float) -> None:
        """A chunk was read: `seconds` from its start to the end of the computation."""
        if tokens >= SMALLEST and seconds > 0:
            rate = tokens / seconds
            self._rate = rate if self._rate is None else (self._rate + rate) / 2

    def _length(self, seconds: float) -> int:
        if self._rate is None:
            return _FIRST
        fits = int(self._rate * seconds)
        return min(PREFILL_CHUNK, max(SMALLEST, 1 << max(fits.bit_length() - 1, 0)))
