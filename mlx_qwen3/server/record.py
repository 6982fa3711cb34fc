"""What becomes of one HTTP request: kept while it runs, for its log line and the metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field

from mlx_qwen3.generation.output import Completion, Event
from mlx_qwen3.generation.request import Request

Gap = Callable[[str, float], None]


@dataclass
class ReplyRecord:
    """One reply. first: seconds from the request to its first event, None before that.

    gap: told the model and the seconds between two events. failed: it ended with an error.
    """

    model: str
    prompt_tokens: int
    began: float
    gap: Gap
    first: float | None = None
    completion: Completion | None = None
    failed: bool = False
    _last: float = 0.0

    def saw(self, event: Event) -> None:
        """Take note of an event, at the moment it comes."""
        now = time.monotonic()
        if event.completion is not None:
            self.completion = event.completion
        if self.first is None:
            self.first = now - self.began
        elif event.completion is None:
            self.gap(self.model, now - self._last)
        self._last = now

    @property
    def end(self) -> str:
        """Why it ended: a finish reason, "failed", or "cancelled"."""
        if self.completion is not None:
            return self.completion.finish_reason
        return "failed" if self.failed else "cancelled"


@dataclass
class RequestRecord:
    """One request. began: time.monotonic() at its start. status: None until one was sent."""

    request_id: str
    method: str
    gap: Gap
    began: float = field(default_factory=time.monotonic)
    status: int | None = None
    model: str | None = None
    replies: list[ReplyRecord] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.monotonic() - self.began

    @property
    def first(self) -> float | None:
        """Seconds until the first reply's first event."""
        return min((one.first for one in self.replies if one.first is not None), default=None)

    @property
    def ends(self) -> list[str]:
        """Why its replies ended, each reason once."""
        return list(dict.fromkeys(reply.end for reply in self.replies))


_current: ContextVar[RequestRecord | None] = ContextVar("mlx_qwen3_request", default=None)


def begin(record: RequestRecord) -> None:
    """What runs for this task, and for tasks it starts, now belongs to this record."""
    _current.set(record)


async def recorded(
    model: str, request: Request, events: AsyncGenerator[Event, None]
) -> AsyncGenerator[Event, None]:
    """The events of a reply, noted in the record of the HTTP request it is for, if it is for one."""
    record = _current.get()
    async with aclosing(events):
        if record is None:
            async for event in events:
                yield event
            return
        reply = ReplyRecord(model, len(request.prompt_ids), record.began, record.gap)
        record.replies.append(reply)
        try:
            async for event in events:
                reply.saw(event)
                yield event
        except Exception:
            reply.failed = True
            raise
