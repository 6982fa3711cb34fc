"""The processes one model is spread over: MLX's own group, and what this package asks of it.

Every process runs the same program with the same arguments. All collectives are part of MLX's
graph and come in the same order everywhere, because everywhere the same graph is built.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_qwen3.errors import PeerError

_DIGITS = 16  # bits of a whole number that one exchanged element carries


@dataclass(frozen=True)
class PeerTraffic:
    """What this process asked its group to exchange so far.

    reduced, gathered, sent: bytes of the arrays it gave to all_sum, all_gather and send.
    calls: how many of these there were.
    """

    reduced: int = 0
    gathered: int = 0
    sent: int = 0
    calls: int = 0

    def __sub__(self, other: PeerTraffic) -> PeerTraffic:
        return PeerTraffic(
            self.reduced - other.reduced,
            self.gathered - other.gathered,
            self.sent - other.sent,
            self.calls - other.calls,
        )

    def wire_bytes(self, size: int) -> float:
        """What a ring of `size` processes has each of them send for it."""
        return 2 * (size - 1) / size * self.reduced + (size - 1) * self.gathered + self.sent


class Peers:
    """This process among the others. rank: 0 to size - 1; rank 0 is the one that talks."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self.rank = group.rank()
        self.size = group.size()
        self.traffic = PeerTraffic()

    @classmethod
    def join(cls) -> Peers:
        """The group of the launcher that started this process. Raises PeerError without one."""
        try:
            group = mx.distributed.init(strict=True)
        except RuntimeError as exc:
            raise PeerError(
                f"no other processes to work with ({exc}); start them with "
                "`mlx.launch -n 2 -- mlx-qwen3 ...`, or with a host file"
            ) from exc
        if group.size() < 2:
            raise PeerError(
                "this process is alone; expected at least two: start them with "
                "`mlx.launch -n 2 -- mlx-qwen3 ...`, or with a host file"
            )
        return cls(group)

    def all_sum(self, x: mx.array) -> mx.array:
        """The sum of everybody's x: one shape and dtype everywhere.

        Two processes hand each other all of x: as many bytes as a sum, in one round, not two.
        """
        self._count(reduced=x.nbytes)
        if self.size == 2:
            both = mx.distributed.all_gather(x[None], group=self._group)
            return both[0] + both[1]
        return mx.distributed.all_sum(x, group=self._group)

    def all_gather(self, x: mx.array) -> mx.array:
        """Everybody's x, by rank: (...) -> (size, ...)."""
        self._count(gathered=x.nbytes)
        return mx.distributed.all_gather(x[None], group=self._group)

    def send(self, x: mx.array, to: int) -> mx.array:
        """x itself; evaluating it sends it to the process `to`."""
        self._count(sent=x.nbytes)
        return mx.distributed.send(x, to, group=self._group)

    def receive(self, shape: tuple[int, ...], dtype: mx.Dtype, source: int) -> mx.array:
        """What the process `source` sends."""
        return mx.distributed.recv(shape, dtype, source, group=self._group)

    def share(self, x: mx.array) -> mx.array:
        """Rank 0's x, everywhere: whole numbers, such as the token that was drawn."""
        mine = x if self.rank == 0 else mx.zeros_like(x)
        # What the others drew is not used, but what it was drawn from must have been computed.
        return self.all_sum(mine if self.rank == 0 else mx.depends(mine, x))

    def share_number(self, number: int) -> int:
        """Rank 0's number (0 to 2^64 - 1), everywhere. Waits for it."""
        digits = [number >> shift & (1 << _DIGITS) - 1 for shift in range(0, 64, _DIGITS)]
        shared: Any = self.share(mx.array(digits, mx.int32)).tolist()
        return sum(int(digit) << _DIGITS * place for place, digit in enumerate(shared))

    def exchange(self, message: bytes) -> list[bytes]:
        """Everybody's message, by rank. Messages are equally long. Waits for them."""
        gathered: Any = self.all_gather(mx.array(list(message), mx.uint8)).tolist()
        return [bytes(row) for row in gathered]

    def _count(self, *, reduced: int = 0, gathered: int = 0, sent: int = 0) -> None:
        now = self.traffic
        self.traffic = replace(
            now,
            reduced=now.reduced + reduced,
            gathered=now.gathered + gathered,
            sent=now.sent + sent,
            calls=now.calls + 1,
        )
