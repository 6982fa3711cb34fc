"""A question that a tool answers, and a tool on offer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from chat import Tool


@dataclass(frozen=True)
class Task:
    """One question, the call it needs, what the tool says and what follows from that."""

    question: str
    intent: str  # what the user wants, for the thinking
    call: dict
    response: str
    finding: str  # what the response says, for the thinking
    answer: str


@dataclass(frozen=True)
class Offer:
    """A tool on offer, and how to make a task for it."""

    tool: Tool
    make: Callable[[Random, bool], Task] | None = None  # None: it is only ever in the way

    @property
    def name(self) -> str:
        return self.tool["function"]["name"]

    def task(self, rng: Random, test: bool) -> Task:
        if self.make is None:
            raise ValueError(f"{self.name} is never asked for")
        return self.make(rng, test)


def as_json(rng: Random, value: dict, real: bool = False) -> str:
    """A tool's response: compact, or indented as some servers write it."""
    indent = 2 if real or rng.random() < 0.3 else None
    return json.dumps(value, ensure_ascii=False, indent=indent)
