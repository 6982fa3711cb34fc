"""One sequence's place in a batch: what it is to read, and the token it drew last."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_qwen3.generation.constraints import Constraint
from mlx_qwen3.generation.loop import Progress, Token, read_sample
from mlx_qwen3.generation.sampling import Sample, Sampler
from mlx_qwen3.model.cache import Cache


class Slot:
    """The loop of a reply whose steps `Batch` makes (`generation.loop.Loop`).

    The reply says what is to be read (`feed`, `force`) and takes tokens (`next`) that a step has
    left here. pending: tokens still to be read. left: tokens the reply may still get.
    drawn: the next token, perhaps not yet computed.
    """

    def __init__(
        self, cache: Cache, sampler: Sampler, constraint: Constraint | None, *, max_tokens: int
    ) -> None:
        self.cache = cache
        self.pending: list[int] = []
        self.left = max_tokens
        self.drawn: Sample | None = None
        self.proposed = self.accepted = 0
        self._sampler = sampler
        self._constraint = constraint
        self._token: Token | None = None  # the one drawn, once it was waited for
        self._taken: Token | None = None
        self._certain = cache.offset

    @property
    def offset(self) -> int:
        """Tokens the cache holds for certain."""
        return self._certain

    @property
    def ready(self) -> bool:
        """Whether a step can give it a token: all is read, and one is drawn."""
        return self.drawn is not None and not self.pending

    @property
    def constrained(self) -> bool:
        """Whether the host must see a token before the next can be drawn."""
        return self._constraint is not None

    def feed(self, token_ids: Sequence[int], progress: Progress | None = None) -> None:
        """Have these tokens read, a chunk at a time. progress is not used."""
        self.pending = list(token_ids)

    def force(self, token_ids: Sequence[int]) -> None:
        """Put words into the model's mouth: what it drew itself is dropped."""
        self._sampler.observe(mx.array(list(token_ids)))
        if self._constraint is not None:
            for token_id in token_ids:
                self._constraint.accept(token_id)
        self.drawn = self._token = None
        self.left -= len(token_ids)
        self.feed(token_ids)

    def next(self, *, last: bool = False) -> Token:
        """The token that the step just made has left here. last is known already."""
        token, self._taken = self._taken, None
        if token is None:
            raise RuntimeError("no step was made for this sequence")
        return token

    def move(self, cache: Cache, token_ids: Sequence[int]) -> None:
        """Go on in another cache, which holds the beginning of `token_ids`: all there is so far."""
        self.cache = cache
        self._certain = cache.offset
        self.pending = list(token_ids[cache.offset :])

    def was_read(self) -> None:
        """What was sent into the cache is in it."""
        self._certain = self.cache.offset

    def follow(self) -> mx.array:
        """The drawn token becomes part of the output: (1,) int, what the next step reads."""
        token = self._require_drawn().token
        self._sampler.observe(token)
        return token

    def draw(self, logits: mx.array) -> Sample:
        """Draw from (1, vocab_size), where a constraint holds after seeing the token before.

        The sample before, if any, was given out (`follow`) and must be read first (`peek`).
        Raises SchemaError when that is not what the constraint allows.
        """
        allowed = None
        if self._constraint is not None:
            if self.drawn is not None:
                self._constraint.accept(self.peek().token_id)
            allowed = self._constraint.allowed()
        return self._sampler.sample(logits, allowed)

    def peek(self) -> Token:
        """The drawn token, waited for."""
        if self._token is None:
            self._token = read_sample(self._require_drawn())
        return self._token

    def deliver(self, following: Sample | None) -> None:
        """Leave the drawn token for `next` to take; `following` is the one after it."""
        self._taken = self.peek()
        self.drawn, self._token = following, None
        self.left -= 1

    def _require_drawn(self) -> Sample:
        if self.drawn is None:
            raise RuntimeError("this sequence has drawn no token; read its prompt first")
        return self.drawn
