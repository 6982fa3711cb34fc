"""Parts of a layer that need the other processes: what they compute is the same everywhere."""

from __future__ import annotations

import mlx.core as mx
from mlx.nn.layers.base import Module

from mlx_qwen3.model.experts import Experts, ExpertTraffic
from mlx_qwen3.model.linear import AnyLinear
from mlx_qwen3.model.peers import Peers


class SummedLinear(AnyLinear):
    """A projection whose inputs are spread over the processes: the sum of what each makes of its.

    bias: of the whole, added once.
    """

    def __init__(self, part: AnyLinear, bias: mx.array | None, peers: Peers) -> None:
        super().__init__()
        self.part = part
        self.bias = bias
        self._peers = peers

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., in / size) -> (..., out)."""
        y = self._peers.all_sum(self.part(x))
        return y if self.bias is None else y + self.bias

    @property
    def out_dims(self) -> int:
        """Rows of the matrix."""
        return self.part.out_dims

    def rows(self, ids: mx.array) -> mx.array:
        """Rows of this process's columns: (...) -> (..., in / size)."""
        return self.part.rows(ids)


class SummedExperts(Module):
    """Experts of which each process has a part of the intermediate dimension."""

    def __init__(self, part: Experts, peers: Peers) -> None:
        super().__init__()
        self.part = part
        self._peers = peers

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """See Experts. One exchange for all experts of a token."""
        return self._peers.all_sum(self.part(x, experts, weights))

    @property
    def traffic(self) -> ExpertTraffic | None:
        """See Experts."""
        return self.part.traffic

    def idle_bytes(self, top_k: int) -> int:
        """See Experts."""
        return self.part.idle_bytes(top_k)


class SharedVocabulary(AnyLinear):
    """An embedding or a head of whose rows each process has some, the same number but the last.

    part: the rows from `start` on. share: rows of each process. out_dims: all rows.
    """

    def __init__(self, part: AnyLinear, start: int, share: int, out_dims: int, peers: Peers):
        super().__init__()
        self.part = part
        self.bias = None
        self._out_dims = out_dims
        self._start = start
        self._share = share
        self._peers = peers

    def __call__(self, x: mx.array) -> mx.array:
        """x: (..., in) -> (..., out_dims): everybody's outputs side by side."""
        mine = self.part(x)
        short = self._share - mine.shape[-1]
        if short:  # what is gathered is equally long
            mine = mx.pad(mine, [(0, 0)] * (mine.ndim - 1) + [(0, short)])
        all_parts = mx.moveaxis(self._peers.all_gather(mine), 0, -2)  # (..., size, share)
        return all_parts.reshape(*x.shape[:-1], -1)[..., : self._out_dims]

    @property
    def out_dims(self) -> int:
        """Tokens of the whole vocabulary."""
        return self._out_dims

    def rows(self, ids: mx.array) -> mx.array:
        """(...) -> (..., in): whoever has a row adds it to everybody's zeros."""
        places = ids.astype(mx.int32) - self._start
        here = (places >= 0) & (places < self.part.out_dims)
        found = self.part.rows(mx.where(here, places, 0))
        return self._peers.all_sum(mx.where(here[..., None], found, mx.zeros_like(found)))
