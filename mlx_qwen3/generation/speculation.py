"""Several tokens a step, and the same tokens: proposals, verified by the model in one pass.

`SpeculativeLoop` is a `TokenLoop` whose steps may have many rows: the last token, and what a
proposer (proposers.py) expects after it. Every row draws with the number that plain decoding
would draw with at its place, after the tokens it would see there. As long as the draw is the
proposed token the next row holds as well; the first other draw ends the burst, and is a token
too. So a reply does not depend on what was proposed, or on how much: greedy or sampled, it is
plain decoding's. (Accepting with probability p(x), as in arXiv:2211.17192, is the same thing
for a proposal that is certain.)

Where the device computes rows together differently than one by one, logits differ in their last
bits. Draws that this could change are not taken: the tokens since the first burst are read
again one by one, as plain decoding read them, and the reply goes on from there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_qwen3.generation.constraints import Constraint
from mlx_qwen3.generation.loop import PREFILL_CHUNK, Progress, Token, TokenLoop
from mlx_qwen3.generation.pace import Pace
from mlx_qwen3.generation.proposers import Place, Proposer
from mlx_qwen3.generation.sampling import RowSample, Sample, Sampler, SamplerState
from mlx_qwen3.model.cache import Cache
from mlx_qwen3.model.transformer import Transformer


@dataclass(frozen=True)
class _Pass:
    """A forward pass that is enqueued: (k + 1, vocab_size) logits, of which nothing is drawn yet.

    proposal: (k,) int behind the first row; None: a plain step. regular: enqueued as plain
    decoding would, with nothing read again before it.
    """

    logits: mx.array
    proposal: mx.array | None = None
    regular: bool = False


@dataclass(frozen=True)
class _Flight:
    """A step on its way.

    state: of the sampler before its draws. proposal, regular: see _Pass.
    """

    sample: RowSample
    state: SamplerState
    proposal: mx.array | None = None
    regular: bool = False

    @property
    def rows(self) -> int:
        return self.sample.tokens.shape[0]

    @property
    def plain(self) -> bool:
        """Whether it is a step that plain decoding makes, at the time it makes it."""
        return self.regular and self.proposal is None


class SpeculativeLoop(TokenLoop):
    """A TokenLoop that verifies proposals where that pays.

    max_tokens: tokens that will be asked for, forced ones included; nothing beyond is computed.
    tolerance: how far rounding in a burst may move a difference of logits (model/policy.py).
    sampler: one that does not switch (see Sampler). constraint: as in TokenLoop.
    proposed, accepted: tokens so far.
    """

    def __init__(
        self,
        model: Transformer,
        cache: Cache,
        sampler: Sampler,
        proposer: Proposer,
        pace: Pace,
        *,
        max_tokens: int,
        tolerance: float = 0.0,
        constraint: Constraint | None = None,
        chunk: int = PREFILL_CHUNK,
    ) -> None:
        super().__init__(model, cache, sampler, constraint=constraint, chunk=chunk)
        self._proposer = proposer
        self._watch = _Watch(pace)
        self._room = max_tokens
        self._tolerance = tolerance
        self._tokens: list[int] = []  # of the sequence, those in _ready included
        self._origin = cache.offset  # where the first of them is
        self._ready: deque[Token] = deque()
        self._flight: _Flight | None = None
        # The last step that was read: the sampler before it, and what it drew.
        self._landed: tuple[SamplerState, list[int]] | None = None
        self._noisy_from: int | None = None  # first token whose cache entry a burst wrote
        self._forced: dict[int, int] = {}  # where tokens were read together: start -> how many

    @property
    def _position(self) -> int:
        """How many of the tokens the cache holds."""
        return self._cache.offset - self._origin

    def recall(self, token_ids: Sequence[int]) -> None:
        """What the cache held before the first `feed`, for the proposer to know."""
        self._origin -= len(token_ids)
        self._tokens = [*token_ids, *self._tokens]
        self._proposer.read(token_ids)

    def feed(self, token_ids: Sequence[int], progress: Progress | None = None) -> None:
        """As in TokenLoop."""
        self._tokens += token_ids
        self._watch.reset()
        super().feed(token_ids, progress)
        self._proposer.read(token_ids)

    def next(self, *, last: bool = False) -> Token:
        """As in TokenLoop. Most of a burst's tokens are here already."""
        self._watch.enter()
        while not self._ready:
            self._advance(last)
        self._tick()
        self._watch.leave()
        return self._ready.popleft()

    def force(self, token_ids: Sequence[int]) -> None:
        """As in TokenLoop: what is in flight, and what was not asked for yet, is dropped."""
        self._drop_undelivered()
        missing = self._tokens[self._position :]
        if missing:  # the last token was not read yet; by itself, as a plain step reads it
            self._model.step(mx.array(missing), self._cache)
        self._forced[len(self._tokens)] = len(token_ids)
        self._room -= len(token_ids)
        super().force(token_ids)

    # --- one step ---

    def _advance(self, last: bool) -> None:
        """Read the step in flight; enqueue the next one, before that if it can be."""
        flight, self._flight = self._flight, None
        if flight is None:
            raise RuntimeError("nothing to continue from: feed the prompt first")
        ahead = None
        if flight.proposal is None and not last and self._room > 1:
            self._sampler.observe(flight.sample.tokens)
            ahead = self._enqueue(flight.sample.tokens, unread=True)
            if self._constraint is None:
                self._fly(ahead)
        tokens, certain = self._land(flight, ahead)
        if not certain:
            self._read_again()
        elif ahead is None and not last and self._room > 0:
            self._sampler.observe(mx.array(tokens))
            self._fly(self._enqueue(mx.array(tokens[-1:]), unread=False))
        elif ahead is not None and self._flight is None:
            self._fly(ahead)  # only now does the constraint know what it follows

    def _enqueue(self, first: mx.array, *, unread: bool) -> _Pass:
        """The pass that reads `first`, and a proposal behind it."""
        limit = self._room - 1 - unread
        place = Place(first, unread, limit, self._sampler.state())
        proposal = self._proposer.propose(place) if limit > 0 else None
        if proposal is None:
            logits = self._model.step(first, self._cache)
        else:
            if self._tolerance and self._noisy_from is None:
                self._noisy_from = self._position
            rows = mx.concatenate([first, proposal.astype(first.dtype)])
            logits = self._model.logits(self._model.hidden_states(rows[None], self._cache)[0])
        if self._constraint is not None:  # the device computes while the host makes the masks
            self._in_flight[:] = [logits]
            mx.async_eval(logits)
        return _Pass(logits, proposal, regular=unread)

    def _launch(self, logits: mx.array, after: Sample | None = None) -> None:
        """The step after a prompt, or after forced tokens."""
        self._fly(_Pass(logits))

    def _fly(self, step: _Pass) -> None:
        """Draw of a pass, for all its rows."""
        tolerance = 0.0 if self._noisy_from is None else self._tolerance
        state = self._sampler.state()
        masks = None if self._constraint is None else _masks(self._constraint, step.proposal)
        sample = self._sampler.sample_rows(
            step.logits, step.proposal, allowed=masks, tolerance=tolerance
        )
        self._flight = _Flight(sample, state, step.proposal, step.regular)
        self._in_flight[:] = sample.arrays()
        mx.async_eval(self._in_flight)
        self._note_offset()

    def _note_offset(self) -> None:
        """Proposed tokens that are in the cache are nobody's yet."""
        self._read_tokens = self._origin + min(self._position, len(self._tokens))

    def _land(self, flight: _Flight, ahead: _Pass | None) -> tuple[list[int], bool]:
        """Read a step: its valid tokens, and whether they are all that its draws give.

        They are not where rounding may have drawn the token after them.
        """
        drawn = _read_rows(flight.sample)
        proposal = _ids(flight.proposal)
        certain = self._certain(flight)
        count = _agreeing([token.token_id for token in drawn], proposal)
        sure = next((i for i, one in enumerate(certain[:count]) if not one), count)
        taken = drawn[:sure]
        token_ids = [token.token_id for token in taken]
        self._landed = (flight.state, token_ids)
        self._settle(flight, len(token_ids), len(proposal))
        self._tokens += token_ids
        self._ready += taken
        self._room -= sure
        self._note_offset()
        self._proposer.extend(token_ids)
        if self._constraint is not None:
            for token_id in token_ids:
                self._constraint.accept(token_id)
        burst_behind = ahead is not None and ahead.proposal is not None
        self._watch.landed(flight, sure, burst_behind=burst_behind)
        return token_ids, sure == count

    def _settle(self, flight: _Flight, taken: int, proposed: int) -> None:
        """Undo what the rows without a valid token did to cache and sampler."""
        if not proposed:
            return
        accepted = min(taken, proposed)
        self._proposer.judged(proposed, accepted)
        self.proposed += proposed
        self.accepted += accepted
        self._cache.trim(flight.rows - taken)
        self._sampler.skip(taken - flight.rows)

    def _certain(self, flight: _Flight) -> list[bool]:
        """Which draws stand; also those that nothing can be done about any more."""
        if flight.sample.certain is None or not self._can_read_again():
            return [True] * flight.rows
        certain: Any = flight.sample.certain.tolist()
        return list(certain)

    # --- going back ---

    def _can_read_again(self) -> bool:
        """Not where a rotating cache forgot what would have to be read before."""
        noisy = self._noisy_from
        return noisy is not None and self._position - noisy <= self._cache.trimmable

    def _read_again(self) -> None:
        """Do as plain decoding did since the first burst, token by token; then its next step."""
        assert self._landed is not None
        assert self._noisy_from is not None
        state, tokens = self._landed
        self._sampler.restore(state)
        self._sampler.skip(len(tokens))
        if tokens:
            self._sampler.observe(mx.array(tokens))
        start, self._noisy_from = self._noisy_from, None
        self._read_tokens = self._origin + start
        self._cache.trim(self._position - start)
        logits = None
        at = start
        while at < len(self._tokens):
            end = at + self._forced.get(at, 1)
            logits = self._reread(self._tokens[at:end])
            mx.async_eval(self._cache.state())
            at = end
        assert logits is not None
        self._launch(logits)

    def _reread(self, token_ids: list[int]) -> mx.array:
        """Logits behind tokens that are read as plain decoding read them."""
        ids = mx.array(token_ids)
        if len(token_ids) == 1:
            return self._model.step(ids, self._cache)
        return self._model.logits(self._model.hidden_states(ids[None], self._cache)[:, -1])

    def _drop_undelivered(self) -> None:
        """Be as plain decoding is at the last token that was asked for: one draw ahead."""
        dropped = len(self._ready)
        self._ready.clear()
        if self._landed is not None:
            state, tokens = self._landed
        elif self._flight is not None:
            state, tokens = self._flight.state, []
        else:
            return
        kept = tokens[: len(tokens) - dropped]
        self._flight = self._landed = None
        self._sampler.restore(state)
        self._sampler.skip(len(kept) + 1)
        if kept:
            self._sampler.observe(mx.array(kept))
        self._room += dropped
        if dropped:
            del self._tokens[-dropped:]
        self._proposer.retract(dropped)
        if self._constraint is not None and dropped:
            self._constraint.rollback(dropped)
        self._read_tokens = min(self._read_tokens, self._origin + len(self._tokens))
        self._cache.trim(max(0, self._position - len(self._tokens)))
        if self._noisy_from is not None and self._noisy_from >= self._position:
            self._noisy_from = None


class _Watch:
    """Times steps from one that was read to the next, and the caller's share of it."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._left: float | None = None
        self._read: float | None = None
        self._away = 0.0
        self._untimed = 0  # plain steps since the last time

    def reset(self) -> None:
        """The next step to be read is not one of many: do not time it."""
        self._read, self._untimed = None, 0

    def enter(self) -> None:
        if self._left is not None:
            self._away += time.perf_counter() - self._left

    def leave(self) -> None:
        self._left = time.perf_counter()

    def landed(self, flight: _Flight, tokens: int, *, burst_behind: bool) -> None:
        """A step was read, while another may be on its way behind it.

        With a burst behind it, a plain step is timed together with that: whether the host waits
        for a step as it enqueues the next one, or as it reads the first, is the backend's choice.
        """
        if flight.plain and burst_behind:
            self._untimed += 1
            return
        now = time.perf_counter()
        if self._read is not None:
            seconds = now - self._read
            if flight.plain:
                self._pace.note_plain(seconds, self._away)
            else:
                self._pace.note_burst(flight.rows, tokens, seconds, self._away, self._untimed)
        self._read, self._away, self._untimed = now, 0.0, 0


def _masks(constraint: Constraint, proposal: mx.array | None) -> mx.array | None:
    """What is allowed at each row: (k + 1, vocab_size), or None for anything at every row.

    Rows behind a proposed token that is not allowed do not matter: it cannot be drawn.
    """
    masks, proposed = [constraint.allowed()], _ids(proposal)
    for token_id in proposed:
        mask = masks[-1]
        if mask is not None and not mask[token_id].item():
            break
        constraint.accept(token_id)
        masks.append(constraint.allowed())
    constraint.rollback(len(masks) - 1)
    ruled = next((mask for mask in masks if mask is not None), None)
    if ruled is None:
        return None
    masks += [ruled] * (len(proposed) + 1 - len(masks))
    anything = mx.ones_like(ruled)
    return mx.stack([anything if mask is None else mask for mask in masks])


def _agreeing(drawn: Sequence[int], proposal: Sequence[int]) -> int:
    """How many draws hold: those that were proposed, and the first that was not."""
    count = 0
    for token_id, proposed in zip(drawn, proposal, strict=False):
        if token_id != proposed:
            break
        count += 1
    return count + 1


def _ids(tokens: mx.array | None) -> list[int]:
    if tokens is None:
        return []
    ids: Any = tokens.tolist()
    return list(ids)


def _read_rows(sample: RowSample) -> list[Token]:
    """Wait for a step and bring its draws to the host.

    Not by mx.eval, which waits for the step after it as well.
    """
    ids = _ids(sample.tokens)
    if sample.logprobs is None:
        return [Token(token_id) for token_id in ids]
    own: Any = sample.logprobs.tolist()
    if sample.top_ids is None or sample.top_logprobs is None:
        return [Token(token_id, logprob) for token_id, logprob in zip(ids, own, strict=True)]
    top_ids: Any = sample.top_ids.tolist()
    top_logprobs: Any = sample.top_logprobs.tolist()
    tops = (zip(*row, strict=True) for row in zip(top_ids, top_logprobs, strict=True))
    return [
        Token(one, logprob, tuple(top)) for one, logprob, top in zip(ids, own, tops, strict=True)
    ]
