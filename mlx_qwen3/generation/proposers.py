"""Who proposes tokens: the sequence's own past, or a smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlx_qwen3.generation.lookup import Lookup
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.generation.sampling import Sampler, SamplerState
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer

_CHUNK = 2048  # tokens a draft model reads at once


@dataclass(frozen=True)
class Place:
    """Where a proposal is to go on.

    first: (1,) int, the last token. unread: whether it is still on its way from the device, so
    that the proposer was not given it. limit: tokens to propose at most. state: of the sampler
    that will draw after it.
    """

    first: mx.array
    unread: bool
    limit: int
    state: SamplerState


class Proposer(Protocol):
    """Guesses what follows. Told every token of the sequence, in order."""

    def read(self, token_ids: Sequence[int]) -> None:
        """Tokens of the prompt, or forced ones."""
        ...

    def extend(self, token_ids: Sequence[int]) -> None:
        """Generated tokens."""
        ...

    def retract(self, count: int) -> None:
        """The last `count` tokens are not part of the sequence after all."""
        ...

    def propose(self, place: Place) -> mx.array | None:
        """Tokens that may follow `place.first`: (k,) int; None when it is not worth a try."""
        ...

    def judged(self, proposed: int, accepted: int) -> None:
        """How the last proposal fared."""
        ...


class LookupProposer:
    """Proposes what followed an earlier occurrence of the last tokens."""

    def __init__(self, lookup: Lookup, pace: Pace) -> None:
        self._lookup = lookup
        self._pace = pace
        self.read = lookup.read
        self.extend = lookup.extend
        self.retract = lookup.retract

    def propose(self, place: Place) -> mx.array | None:
        """As in Proposer."""
        if not self._lookup.match or self._pace.exhausted:
            return None
        skip = int(place.unread)
        limit = min(place.limit, self._pace.max_rows - 1)
        count = self._pace.best(self._lookup.survival(skip, limit))
        return mx.array(self._lookup.foreseen(skip, count)) if count else None

    def judged(self, proposed: int, accepted: int) -> None:
        """The lookup learns from every token already."""


class DraftHabits:
    """How often a draft model's next token is the target's: learned over all replies."""

    _PRIOR, _FOLLOW, _FORGET = 0.7, 0.05, 1 / 512

    def __init__(self) -> None:
        self.odds = self._PRIOR

    def note(self, proposed: int, accepted: int) -> None:
        """Every accepted token is a success; the one after them, if proposed, a failure."""
        for hit in [True] * accepted + [False] * (accepted < proposed):
            self.odds += self._FOLLOW * (hit - self.odds)

    def forget(self) -> None:
        """A token passed without a proposal: become curious again, slowly."""
        self.odds += self._FORGET * (self._PRIOR - self.odds)


class DraftProposer:
    """Proposes what a smaller model would draw, with the target's own random numbers.

    Both draw by the same numbers at the same place, so that similar distributions give the same
    token most often (arXiv:2408.07978): what the target draws does not depend on the proposal.
    sampler: made with the target's parameters and seed; its state comes from the target's.
    """

    def __init__(
        self, model: Transformer, cache: Cache, sampler: Sampler, habits: DraftHabits, pace: Pace
    ) -> None:
        self._model = model
        self._cache = cache
        self._sampler = sampler
        self._habits = habits
        self._pace = pace
        self._tokens: list[int] = []
        self._valid = 0  # tokens of the sequence that the cache holds

    def read(self, token_ids: Sequence[int]) -> None:
        """As in Proposer; the model reads them when it is asked."""
        self._tokens += token_ids

    def extend(self, token_ids: Sequence[int]) -> None:
        """As in Proposer."""
        self._tokens += token_ids
        self._habits.forget()

    def retract(self, count: int) -> None:
        """As in Proposer."""
        if count:
            del self._tokens[-count:]
        self._valid = min(self._valid, len(self._tokens))

    def propose(self, place: Place) -> mx.array | None:
        """As in Proposer. The tokens stay on the device."""
        if self._pace.exhausted:
            return None
        limit = min(place.limit, self._pace.max_rows - 1)
        odds = self._habits.odds
        count = self._pace.best([odds ** (index + 1) for index in range(limit)])
        return self._draw(place, count) if count else None

    def judged(self, proposed: int, accepted: int) -> None:
        """The last token proposed was never read."""
        self._habits.note(proposed, accepted)
        self._valid = self._before + 1 + min(accepted, proposed - 1)

    def _draw(self, place: Place, count: int) -> mx.array:
        self._catch_up(len(self._tokens) - (not place.unread))
        self._sampler.restore(place.state)
        token, drawn = place.first, []
        for _ in range(count):
            token = self._sampler.sample(self._model.step(token, self._cache)).token
            self._sampler.observe(token)
            drawn.append(token)
        return mx.concatenate(drawn)

    def _catch_up(self, end: int) -> None:
        """Have the cache hold the first `end` tokens, and nothing else."""
        self._valid = min(self._valid, end)
        self._cache.trim(self._cache.offset - self._valid)
        for start in range(self._valid, end, _CHUNK):
            piece = self._tokens[start : min(start + _CHUNK, end)]
            self._model.hidden_states(mx.array([piece]), self._cache)
            mx.async_eval(self._cache.state())
        self._valid = self._before = end
