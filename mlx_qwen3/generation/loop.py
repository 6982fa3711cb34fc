"""Prefill in chunks, then one step per token, one step ahead of the host.

`TokenLoop` drives one sequence. While the caller looks at a token, the device already computes
the next: `next()` first enqueues the following step, then waits for the one before.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlx_qwen3.generation.constraints import Constraint
from mlx_qwen3.generation.sampling import Sample, Sampler
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer

# Called with (tokens read, tokens to read) after each chunk of a prompt.
Progress = Callable[[int, int], None]

PREFILL_CHUNK = 2048  # tokens; bounds the scratch memory of a long prompt
_CLEAR_EVERY = 256  # tokens; buffers that grew leave holes in MLX's cache of freed memory


@dataclass(frozen=True)
class Token:
    """One generated token. logprob and top (id, logprob) only when they were asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Loop(Protocol):
    """Generates the tokens of one sequence; what a reply needs of it.

    proposed, accepted: tokens of speculation.
    """

    proposed: int
    accepted: int

    @property
    def offset(self) -> int:
        """Tokens the cache holds for certain."""
        ...

    def feed(self, token_ids: Sequence[int], progress: Progress | None = None) -> None:
        """Read tokens (at least one), then sample the one that follows."""
        ...

    def next(self, *, last: bool = False) -> Token:
        """The next token. last: none will follow, so do not compute one."""
        ...

    def force(self, token_ids: Sequence[int]) -> None:
        """These tokens follow the last one, not its own."""
        ...


class TokenLoop:
    """Generates the tokens of one sequence. Owns the step in flight, not the model.

    Everything it builds is evaluated on the thread that calls it; calls may come from several
    threads, one at a time. When it goes, it waits for the step in flight: what that holds would
    outlive it, and a process that ends while the device works may never end.

    proposed, accepted: tokens of speculation, which this loop leaves to its subclass.
    """

    def __init__(
        self,
        model: Transformer,
        cache: Cache,
        sampler: Sampler,
        *,
        constraint: Constraint | None = None,
        chunk: int = PREFILL_CHUNK,
    ) -> None:
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._constraint = constraint
        self._chunk = chunk
        self._ahead: Sample | None = None
        self._in_flight: list[mx.array] = []
        weakref.finalize(self, _land, self._in_flight)  # at interpreter exit too
        self._count = 0
        self.proposed = 0
        self.accepted = 0
        self._read_tokens = cache.offset

    @property
    def offset(self) -> int:
        """Tokens the cache holds for certain; an interrupted step may have left parts of more."""
        return self._read_tokens

    def feed(self, token_ids: Sequence[int], progress: Progress | None = None) -> None:
        """Read tokens (at least one), then sample the one that follows.

        Raises CacheFullError.
        """
        total = len(token_ids)
        last = (total - 1) // self._chunk * self._chunk
        for start in range(0, last, self._chunk):
            self._read(token_ids[start : start + self._chunk])
            if progress is not None:
                progress(start + self._chunk, total)
        hidden = self._model.hidden_states(mx.array([list(token_ids[last:])]), self._cache)
        self._launch(self._model.logits(hidden[:, -1]))
        if progress is not None:
            mx.eval(self._in_flight)
            progress(total, total)

    def next(self, *, last: bool = False) -> Token:
        """The next token. last: none will follow, so do not compute one."""
        current = self._ahead
        if current is None:
            raise RuntimeError("nothing to continue from: feed the prompt first")
        self._ahead = None
        token = None
        if not last:
            self._sampler.observe(current.token)
            logits = self._model.step(current.token, self._cache)
            token = self._launch(logits, after=current)
        self._tick()
        return token or read_sample(current)

    def force(self, token_ids: Sequence[int]) -> None:
        """Put words into the model's mouth: these tokens follow the last one, not its own.

        The step in flight has already read the last token; what it drew is dropped.
        """
        self._sampler.observe(mx.array(list(token_ids)))
        if self._constraint is not None:
            for token_id in token_ids:
                self._constraint.accept(token_id)
        self.feed(token_ids)

    def _read(self, token_ids: Sequence[int]) -> None:
        """Prefill one chunk: only the cache is evaluated, so the head does not run."""
        self._model.hidden_states(mx.array([list(token_ids)]), self._cache)
        mx.eval(self._cache.state())
        self._read_tokens = self._cache.offset
        mx.clear_cache()

    def _tick(self) -> None:
        """Once a token."""
        self._count += 1
        if self._count % _CLEAR_EVERY == 0:
            mx.clear_cache()

    def _launch(self, logits: mx.array, after: Sample | None = None) -> Token | None:
        """Enqueue the next sample. after: the one before it; read, where a constraint needs it."""
        token, allowed = None, None
        if self._constraint is not None:
            # The device computes the logits while the host reads `after` and makes the mask.
            self._in_flight[:] = [logits]
            mx.async_eval(logits)
            if after is not None:
                token = read_sample(after)
                self._constraint.accept(token.token_id)
            allowed = self._constraint.allowed()
        self._ahead = self._sampler.sample(logits, allowed)
        self._in_flight[:] = self._ahead.arrays()
        mx.async_eval(self._in_flight)
        self._read_tokens = self._cache.offset
        return token


def _land(in_flight: list[mx.array]) -> None:
    """Wait for a step nobody will read. That it failed is then nobody's concern either."""
    with suppress(RuntimeError):
        mx.eval(in_flight)


def read_sample(sample: Sample) -> Token:
    """Wait for a sample and bring it to the host."""
    token_id = int(_number(sample.token))
    if sample.logprob is None:
        return Token(token_id)
    top: tuple[tuple[int, float], ...] = ()
    if sample.top_ids is not None and sample.top_logprobs is not None:
        ids, logprobs = sample.top_ids.tolist(), sample.top_logprobs.tolist()
        top = tuple(zip(ids, logprobs, strict=True))  # type: ignore[arg-type]
    return Token(token_id, _number(sample.logprob), top)


def _number(scalar: mx.array) -> float:
    value = scalar.item()
    assert not isinstance(value, complex)  # for the type checker
    return value
