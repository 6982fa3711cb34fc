"""Requests to an engine, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from mlx_qwen3 import LLM, Completion
from mlx_qwen3.engine.engine import Engine, Ticket
from mlx_qwen3.engine.scheduler import ModelParts, Scheduler
from mlx_qwen3.generation.output import Event

PATIENCE = 120.0  # seconds: a busy machine is slow, a broken engine never answers


class Inbox:
    """Takes what an engine delivers, and lets a test wait for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.error: Exception | None = None
        self._changed = threading.Condition()

    def __call__(self, news: Sequence[Event] | Exception) -> None:
        with self._changed:
            if isinstance(news, Exception):
                self.error = news
            else:
                self.events.extend(news)
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        return self.error is not None or bool(self.events and self.events[-1].kind == "end")

    def wait_for_events(self, count: int) -> None:
        self._wait(lambda: len(self.events) >= count or self.over)

    def completion(self) -> Completion:
        """The whole reply. Raises what ended it instead."""
        self._wait(lambda: self.over)
        if self.error is not None:
            raise self.error
        completion = self.events[-1].completion
        assert completion is not None
        return completion

    def _wait(self, what: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(what, PATIENCE), "the engine does not answer"


def attach(engine: Engine, llm: LLM) -> Scheduler:
    return engine.attach(ModelParts(llm.model, llm.tokenizer, llm.eos_ids, llm.prefix_store))


def submit(engine: Engine, lane: Scheduler, llm: LLM, prompt: Any, **options: Any) -> Asked:
    inbox = Inbox()
    ticket = engine.submit(lane, llm.request(prompt, **options), inbox)
    return Asked(inbox, ticket)


class Asked:
    """A reply in the making."""

    def __init__(self, inbox: Inbox, ticket: Ticket) -> None:
        self.inbox = inbox
        self.ticket = ticket

    def completion(self) -> Completion:
        return self.inbox.completion()
