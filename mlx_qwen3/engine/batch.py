"""The steps of several sequences: chunks of prompts one by one, tokens together.

A step of one token each is made of the same products as each sequence's own (model/batch.py), and
every sequence draws with its own sampler: what it says does not depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlx_qwen3.engine.slot import Slot
from mlx_qwen3.errors import Qwen3Error
from mlx_qwen3.generation.sampling import Sample
from mlx_qwen3.model.batch import BatchedCache
from mlx_qwen3.model.policy import BatchPolicy
from mlx_qwen3.model.transformer import Transformer

_CLEAR_EVERY = 256  # steps; buffers that grew leave holes in MLX's cache of freed memory

Failures = dict[Slot, Qwen3Error]


class Batch:
    """Makes steps for slots; owns the step in flight, not the model. One thread only."""

    def __init__(self, model: Transformer, policy: BatchPolicy) -> None:
        self._model = model
        self._policy = policy
        self._steps = 0
        self._in_flight: list[mx.array] = []

    def read(self, slot: Slot, tokens: int) -> None:
        """Read the next `tokens` that are pending; behind the last, draw."""
        ids, slot.pending = slot.pending[:tokens], slot.pending[tokens:]
        hidden = self._model.hidden_states(mx.array([ids]), slot.cache)
        arrays = slot.cache.state()
        if not slot.pending and slot.drawn is None:
            slot.drawn = slot.draw(self._logits(hidden)[0])
            arrays = [*arrays, *slot.drawn.arrays()]
        mx.eval(arrays)
        slot.was_read()
        mx.clear_cache()

    def step(self, slots: Sequence[Slot]) -> Failures:
        """A token for each of these slots, which are ready; returns what went wrong with which."""
        failures: Failures = {}
        for group in self._groups(slots):
            failures |= self._step(group)
        self._steps += 1
        if self._steps % _CLEAR_EVERY == 0:
            mx.clear_cache()
        return failures

    def land(self) -> None:
        """Wait for what is in flight."""
        mx.eval(self._in_flight)
        self._in_flight = []

    def _groups(self, slots: Sequence[Slot]) -> Iterator[Sequence[Slot]]:
        rows = self._policy.max_rows
        return (slots[start : start + rows] for start in range(0, len(slots), rows))

    def _step(self, slots: Sequence[Slot]) -> Failures:
        going = [slot for slot in slots if slot.left > 1]
        drawn, failures = self._launch(going) if going else ({}, {})
        for slot in slots:
            if slot not in failures:
                slot.deliver(drawn.get(slot))
        return failures

    def _launch(self, slots: Sequence[Slot]) -> tuple[dict[Slot, Sample], Failures]:
        """Enqueue the next token of each; those that are constrained wait for the one before."""
        tokens = mx.concatenate([slot.follow() for slot in slots])[:, None]  # (B, 1)
        cache = slots[0].cache if len(slots) == 1 else BatchedCache([one.cache for one in slots])
        logits = self._logits(self._model.hidden_states(tokens, cache))
        if any(slot.constrained for slot in slots):
            mx.async_eval(logits)  # type: ignore[no-untyped-call]
        drawn: dict[Slot, Sample] = {}
        failures: Failures = {}
        for slot, row in zip(slots, logits, strict=True):
            _draw(slot, row, drawn, failures)
        self._in_flight = [array for sample in drawn.values() for array in sample.arrays()]
        mx.async_eval(self._in_flight)  # type: ignore[no-untyped-call]
        for slot in slots:
            slot.was_read()
        return drawn, failures

    def _logits(self, hidden: mx.array) -> mx.array:
        """Of the last position of each sequence: (B, L, hidden_size) -> (B, 1, vocab_size)."""
        return self._model.logits(hidden[:, -1:])


def _draw(slot: Slot, logits: mx.array, drawn: dict[Slot, Sample], failures: Failures) -> None:
    try:
        drawn[slot] = slot.draw(logits)
    except Qwen3Error as exc:  # said what its grammar does not allow
        failures[slot] = exc.with_traceback(None)  # which would hold `failures`, a circle
