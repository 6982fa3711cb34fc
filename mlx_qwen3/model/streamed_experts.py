"""Experts of a layer that are not all in memory: fetched when a step needs them.

Which those are only the host can act upon, so each layer waits for its router once a step. What
is computed is what ResidentExperts computes, of the same numbers in the same order, with slots in
place of experts; where a step needs more experts than there are slots, wave after wave.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from mlx_qwen3.model.activations import Activation
from mlx_qwen3.model.expert_pool import LayerPool
from mlx_qwen3.model.experts import ExpertTraffic, ResidentExperts, weighted_sum

_CLEAR_FROM = 1024  # (token, expert) pairs
_NOWHERE = np.uint32(0xFFFFFFFF)


class Turns:
    """One layer at a time, of whatever sequence and thread, and nothing computing unnoticed.

    Shared by the layers of a model. A slot is written only when all that was computed with any
    slot is complete, wherever the graph goes on from there.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._last: list[mx.array] = []
        weakref.finalize(self, _land, self._last)  # a process must not end while a device works

    def land(self, *arrays: mx.array) -> None:
        """Wait for these, and for what was launched."""
        last = list(self._last)
        self._last.clear()
        mx.eval(*arrays, *last)

    def launch(self, array: mx.array) -> None:
        """Begin to compute it."""
        self._last.append(array)
        mx.async_eval(array)


class StreamedExperts(Module):
    """The experts of one layer. turns: shared with the model's other layers."""

    def __init__(self, pool: LayerPool, activation: Activation, turns: Turns) -> None:
        super().__init__()
        self.slots = ResidentExperts(pool.gate_up, pool.down, activation)
        self._pool = pool
        self._turns = turns

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """x: (T, hidden); experts, weights: (T, num_experts_per_tok) -> (T, hidden).

        Raises WeightsError when experts cannot be read; the model stays usable.
        """
        with self._turns.lock:
            self._turns.land(experts)
            chosen = np.array(experts)
            wanted: list[int] = np.unique(chosen).tolist()
            if len(wanted) <= self._pool.slots:
                y = self.slots(x, mx.array(self._fetch(wanted)[chosen]), weights)
            else:
                y = weighted_sum(self._in_waves(x, chosen, wanted), weights)
            self._turns.launch(y)
        return y

    @property
    def traffic(self) -> ExpertTraffic | None:
        """See Experts."""
        return self._pool.traffic

    def idle_bytes(self, top_k: int) -> int:
        """See Experts."""
        return self.slots.idle_bytes(top_k)

    def _fetch(self, experts: Sequence[int]) -> NDArray[np.uint32]:
        """The slot of each of these experts, by expert; others have _NOWHERE."""
        slots = np.full(self._pool.experts, _NOWHERE)
        slots[experts] = self._pool.fetch(experts)
        return slots

    def _in_waves(self, x: mx.array, chosen: NDArray[np.uint32], wanted: Sequence[int]) -> mx.array:
        """As ResidentExperts has it before the sum: (T, top_k, 1, hidden)."""
        flat, top_k = chosen.reshape(-1), chosen.shape[1]
        parts: list[mx.array] = []
        places: list[NDArray[np.intp]] = []
        for wave in self._pool.waves(wanted):
            # Its slots are those of the wave before the last.
            mx.eval(parts[: -1 if self._pool.slots > 1 else None])
            slot = self._fetch(wave)[flat]
            pairs = np.flatnonzero(slot != _NOWHERE)
            pairs = pairs[np.argsort(slot[pairs], kind="stable")]
            part = self.slots.rows(x[mx.array(pairs // top_k)], mx.array(slot[pairs]))
            self._turns.launch(part)
            parts.append(part)
            places.append(pairs)
        back = mx.array(np.argsort(np.concatenate(places)))
        y = mx.concatenate(parts)[back].reshape(*chosen.shape, 1, -1)
        self._turns.land(y)
        if flat.size >= _CLEAR_FROM:
            mx.clear_cache()  # waves differ in size, and leave buffers of every size behind
        return y


def _land(last: list[mx.array]) -> None:
    """Wait for what nobody will read. That it failed is then nobody's concern either."""
    with suppress(RuntimeError):
        mx.eval(last)
