"""Some of a layer's experts in memory, in slots; the others in files until they are needed.

    SlotTable    which expert lies in which slot, and which one goes when another comes
    LayerPool    the slots themselves: arrays that MLX multiplies with and files are read into

The least recently used expert goes. On routes of the demo model counts of uses that fade serve
two per cent more of the lookups, with a rate of fading that would have to be right for every model;
one order over all layers serves up to seven per cent fewer (tests/bench/streamed_experts.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_qwen3.model.expert_layout import LayerLayout, MatricesLayout, PartLayout
from mlx_qwen3.model.expert_reader import Array, ExpertReader, Read
from mlx_qwen3.model.experts import ExpertMatrices, ExpertTraffic


class SlotTable:
    """Experts and their slots, the least recently used first."""

    def __init__(self, slots: int) -> None:
        self._slots: OrderedDict[int, int] = OrderedDict()
        self._free = list(range(slots))

    def take(self, experts: Sequence[int]) -> dict[int, int]:
        """Give each of these experts, no more than there are slots, a slot; use them now.

        Returns those that were not here, which have to be read: expert -> slot.
        """
        missing = [expert for expert in experts if expert not in self._slots]
        for expert in experts:
            if expert in self._slots:
                self._slots.move_to_end(expert)
        for expert in missing:
            slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            self._slots[expert] = slot
        return {expert: self._slots[expert] for expert in missing}

    def slot(self, expert: int) -> int:
        """Where an expert lies that was taken."""
        return self._slots[expert]

    def forget(self, experts: Sequence[int]) -> None:
        """These were not read after all."""
        self._free += [self._slots.pop(expert) for expert in experts]

    def in_order(self, experts: Sequence[int]) -> list[int]:
        """The same experts: those that are here, the least recently used first, then the others."""
        wanted = set(experts)
        here = [expert for expert in self._slots if expert in wanted]
        return [*here, *(expert for expert in experts if expert not in self._slots)]


class _Slots:
    """One array of every slot. `array` is what MLX sees, `raw` the same memory to write to."""

    def __init__(self, layout: PartLayout, slots: int) -> None:
        self.layout = layout
        whole = (slots, *layout.shape)
        # A view shares the memory of the array it is of, once that is evaluated.
        base: Any = mx.zeros(whole, mx.uint16 if layout.dtype == mx.bfloat16 else layout.dtype)
        mx.eval(base)
        self.array = base.view(layout.dtype)
        mx.eval(self.array)
        self.raw: Array = np.asarray(memoryview(base)).reshape(slots, -1)

    def reads(self, expert: int, slot: int) -> Iterator[Read]:
        """What fills a slot with an expert."""
        start = 0
        for origin in self.layout.origins:
            size = self.raw.shape[1] // len(self.layout.origins)
            yield Read(
                origin.piece(expert), self.raw[slot, start : start + size], self.layout.dtype
            )
            start += size


class LayerPool:
    """experts: of the layer. slots: how many of them are in memory at once.

    gate_up, down: the matrices of all slots, as ResidentExperts takes those of all experts.
    traffic: what was looked up and read so far.
    """

    def __init__(self, layout: LayerLayout, slots: int, reader: ExpertReader) -> None:
        self.experts = layout.experts
        self.slots = slots
        self.traffic = ExpertTraffic()
        self._reader = reader
        self._table = SlotTable(slots)
        self._arrays: list[_Slots] = []
        self.gate_up = [self._matrices(one) for one in layout.gate_up]
        self.down = self._matrices(layout.down)

    def fetch(self, experts: Sequence[int]) -> list[int]:
        """Have these experts, `slots` of them at most, in memory; returns the slot of each.

        What lay in other slots may be gone: nothing that uses it may still be computing.
        Raises WeightsError when they cannot be read; then they are not here, the others are.
        """
        missing = self._table.take(experts)
        reads = [
            read
            for expert, slot in missing.items()
            for array in self._arrays
            for read in array.reads(expert, slot)
        ]
        if reads:
            try:
                self._reader.read(reads)
            except BaseException:
                self._table.forget(list(missing))
                raise
        read_bytes = sum(read.piece.nbytes for read in reads)
        self.traffic += ExpertTraffic(len(experts), len(missing), read_bytes)
        return [self._table.slot(expert) for expert in experts]

    def waves(self, experts: Sequence[int]) -> list[list[int]]:
        """More experts than there are slots, in parts that are fetched one after the other.

        A part and the next fit together, so that one can be read while the other computes. What
        is in memory comes first, before it has to make room.
        """
        ordered, size = self._table.in_order(experts), max(self.slots // 2, 1)
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _matrices(self, layout: MatricesLayout) -> ExpertMatrices:
        arrays = {name: _Slots(part, self.slots) for name, part in layout.parts.items()}
        self._arrays += arrays.values()
        named = {name: one.array for name, one in arrays.items()}
        return ExpertMatrices(**named, quantization=layout.quantization)
