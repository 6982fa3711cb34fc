"""Which host of a pipeline gets which layers: each as large a share as its memory allows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_qwen3.errors import PeerError
from mlx_qwen3.model.checkpoint import Checkpoint
from mlx_qwen3.model.residency import bytes_in_memory

_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")


@dataclass(frozen=True)
class LayerSizes:
    """Bytes in memory. embedding: of the first stage beside its layers; head: of the last."""

    layers: tuple[int, ...]
    embedding: int
    head: int

    @property
    def total(self) -> int:
        """Of all stages."""
        return sum(self.layers) + self.embedding + self.head

    @classmethod
    def of(cls, checkpoint: Checkpoint, num_layers: int, dtype: mx.Dtype) -> LayerSizes:
        """dtype: of activations. A tied embedding is the head, too."""
        layers, embedding, head = [0] * num_layers, 0, 0
        for name, info in checkpoint.tensors.items():
            size, layer = bytes_in_memory(info, dtype), layer_of(name)
            if layer is not None and layer < num_layers:
                layers[layer] += size
            elif "embed_tokens" in name:
                embedding += size
            elif "lm_head" in name:
                head += size
        return cls(tuple(layers), embedding, head or embedding)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None for those of no layer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def place_layers(sizes: LayerSizes, memory: Sequence[int]) -> list[range]:
    """The layers of each stage, first to last; memory: bytes of each. At least one layer each.

    The fullest host is as empty as can be. Raises PeerError for more stages than layers.
    """
    if len(memory) > len(sizes.layers):
        raise PeerError(
            f"{len(memory)} processes cannot share {len(sizes.layers)} layers; start fewer"
        )
    low, high = 0.0, sizes.total / min(memory) + 1
    for _ in range(60):  # halvings: far below a byte
        middle = (low + high) / 2
        if _fill(sizes, [int(middle * one) for one in memory]) is None:
            low = middle
        else:
            high = middle
    places = _fill(sizes, [int(high * one) for one in memory])
    if places is None or high > 1:
        raise PeerError(
            f"the weights take {sizes.total / 1e9:.1f} GB and do not fit the memories of "
            f"{', '.join(f'{one / 1e9:.1f}' for one in memory)} GB together; add a host, or use "
            "fewer bits"
        )
    return places


def _fill(sizes: LayerSizes, room: Sequence[int]) -> list[range] | None:
    """As many layers for each stage as it has room for, but one for each that follows."""
    places, start, count = [], 0, len(sizes.layers)
    for stage, bytes_left in enumerate(room):
        last = stage == len(room) - 1
        left = bytes_left - sizes.embedding * (stage == 0) - sizes.head * last
        stop, reserved = start, len(room) - 1 - stage
        while stop < count - reserved and sizes.layers[stop] <= left:
            left -= sizes.layers[stop]
            stop += 1
        if stop == start:
            return None
        places.append(range(start, stop))
        start = stop
    return places if start == count else None
