"""What becomes of one HTTP request: kept while it runs, for its log line and the metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field

from mlx_qwen3.generation.output import Completion, Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.service import ServedModel


@dataclass
class ReplyRecord:
    """One reply. first: seconds from the request to its first event, None before that.

    failed: it ended with an error.
    """

    model: str
    prompt_tokens: int
    began: float
    first: float | None = None
    completion: Completion | None = None
    failed: bool = False
    _last: float = 0.0

    def saw(self, event: Event) -> float | None:
        """Take note of an event; the seconds since the one before, where both carry text."""
        now = time.monotonic()
        gap = None if self.first is None or event.completion else now - self._last
        if self.first is None:
            self.first = now - self.began
        self.completion = event.completion
        self._last = now
        return gap

    @property
    def end(self) -> str:
        """Why it ended: a finish reason, "failed", or "cancelled"."""
        if self.completion is not None:
            return self.completion.finish_reason
        return "failed" if self.failed else "cancelled"


@dataclass(frozen=True)
class Listeners:
    """Who is told while a request runs.

    gap: a model, and the seconds between two events of a reply. texts: a reply at its end and the
    prompt as the model read it; None where that is nobody's business.
    """

    gap: Callable[[str, float], None]
    texts: Callable[[ReplyRecord, str], None] | None = None


@dataclass
class RequestRecord:
    """One request. began: time.monotonic() at its start. status: None until one was sent."""

    request_id: str
    method: str
    listeners: Listeners
    began: float = field(default_factory=time.monotonic)
    status: int | None = None
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


def current() -> RequestRecord | None:
    """The record of the request that is being answered here, if one is."""
    return _current.get()


async def recorded(model: ServedModel, request: Request) -> AsyncGenerator[Event, None]:
    """A reply's events, noted in the record of the HTTP request that they are for."""
    record = current()
    async with aclosing(model.stream(request)) as events:
        if record is None:
            async for event in events:
                yield event
            return
        reply = ReplyRecord(model.name, len(request.prompt_ids), record.began)
        record.replies.append(reply)
        try:
            async for event in events:
                gap = reply.saw(event)
                if gap is not None:
                    record.listeners.gap(model.name, gap)
                yield event
        except Exception:
            reply.failed = True
            raise
        finally:
            if record.listeners.texts is not None:
                record.listeners.texts(reply, model.llm.tokenizer.decode(request.prompt_ids))
