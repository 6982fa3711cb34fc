"""Penalties against repetition, and how they change where thinking ends: inside the graph.

The token that ends a thought is drawn on the device, one step ahead of the host, so which
penalties hold is an array too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import mlx.core as mx

PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")

Value = TypeVar("Value", float, mx.array)


@dataclass(frozen=True)
class Penalties(Generic[Value]):
    """In the order of PENALTIES; what each does, SamplingParams says."""

    presence: Value
    frequency: Value
    repetition: Value


@dataclass(frozen=True)
class ThinkTags:
    """The tokens between which a model thinks, and where its reply begins.

    in_thinking: inside of them. may_think: before them, perhaps.
    """

    open_id: int
    close_id: int
    in_thinking: bool
    may_think: bool


class ThinkingSwitch:
    """Which of two sets of penalties holds for the next token."""

    def __init__(self, thinking: Penalties[float], answer: Penalties[float], tags: ThinkTags):
        self._tags = tags
        self._thinking = mx.array(tags.in_thinking)
        self._may_begin = tags.may_think and not tags.in_thinking
        self._rows = mx.array(
            [[one.presence, one.frequency, one.repetition] for one in (answer, thinking)]
        )  # (2, 3)

    def observe(self, tokens: mx.array) -> mx.array:
        """Tokens that became part of the output: (n,) int. Returns whether thinking ended: bool."""
        if self._may_begin:  # only the first token can open a thought
            self._thinking = tokens[0] == self._tags.open_id
            self._may_begin = False
        ended = self._thinking & (tokens == self._tags.close_id).any()
        self._thinking = self._thinking & ~ended
        return ended

    def penalties(self) -> Penalties[mx.array]:
        """Those that hold now, as scalars."""
        now = self._rows[self._thinking.astype(mx.int32)]
        return Penalties(now[0], now[1], now[2])

    def state(self) -> list[mx.array]:
        """What has to be evaluated before another thread goes on."""
        return [self._thinking, self._rows]
