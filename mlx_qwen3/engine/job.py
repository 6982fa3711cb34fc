"""A request on its way through the engine, and whom its events go to."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mlx_qwen3.engine.blocks import Tokens, as_tokens
from mlx_qwen3.engine.memory import CacheKind, common_prefix
from mlx_qwen3.engine.slot import Slot
from mlx_qwen3.generation.output import Event
from mlx_qwen3.generation.reply import Reply
from mlx_qwen3.generation.request import Request

# Takes the events of a reply as they come, "end" last, or the exception that ended it. Called on
# the engine's thread, which waits meanwhile.
Deliver = Callable[[Sequence[Event] | Exception], None]

_log = logging.getLogger(__name__)
_numbers = itertools.count()


@dataclass(eq=False)
class Job:
    """reply, slot: once it runs; both stay when it has to give up its place for a while.

    number: jobs in the order they came. turn: when its prompt was last read from.
    """

    request: Request
    deliver: Deliver
    reply: Reply | None = None
    slot: Slot | None = None
    cancelled: bool = False
    turn: int = 0
    submitted: float = field(default_factory=time.perf_counter)
    number: int = field(default_factory=lambda: next(_numbers))

    def send(self, news: Sequence[Event] | Exception) -> None:
        """Deliver; a receiver that breaks loses its reply, and nobody else's."""
        try:
            self.deliver(news)
        except Exception:  # noqa: BLE001 - whatever it is, it is the receiver's
            _log.exception("events of a reply could not be delivered")
            self.cancelled = True

    @cached_property
    def prompt(self) -> Tokens:
        """The prompt's tokens, to compare."""
        return as_tokens(self.request.prompt_ids)

    def common(self, other: Job) -> int:
        """Tokens that both prompts begin with, 0 where their caches are of different kinds."""
        kinds = [CacheKind.of(job.request) for job in (self, other)]
        return common_prefix(self.prompt, other.prompt) if kinds[0] == kinds[1] else 0

    @property
    def started(self) -> bool:
        """Whether it ran already."""
        return self.reply is not None

    @property
    def tokens(self) -> int:
        """Of prompt and reply so far."""
        return len(self.request.prompt_ids if self.reply is None else self.reply.token_ids)
