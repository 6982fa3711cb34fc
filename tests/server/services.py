"""Servers of one API for tests: over a real service, or over one that plays what is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from mlx_qwen3 import LLM
from mlx_qwen3.errors import ModelNotFoundError
from mlx_qwen3.generation.output import Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.server.body import Limits
from mlx_qwen3.service import ModelInfo, Service
from tests.server.fake_api import serving

Routes = Callable[[Any, Limits], list[Route]]
# Events; exceptions, which end the reply; numbers: seconds in which nothing comes.
Script = Sequence[Event | Exception | float]


@contextmanager
def served(service: Any, *apis: Routes, limits: Limits | None = None) -> Iterator[str]:
    """The APIs of a service behind a real server on this machine; yields its address."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close(1.0)

    routes = [route for api in apis for route in api(service, limits or Limits())]
    with serving(Starlette(routes=routes, lifespan=lifespan)) as address:
        yield address


def real(name: str = "demo") -> Service:
    """A service with one of the bundled models."""
    return Service({name: name})


@dataclass
class PlayedModel:
    """Plays scripts, one for each reply; the last one again and again.

    started, closed: replies begun, and those whose iterator was closed.
    """

    name: str
    llm: LLM
    scripts: list[Script]
    requests: list[Request] = field(default_factory=list)
    started: int = 0
    closed: int = 0

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.requests.append(request)
        self.started += 1
        try:
            for part in script:
                if isinstance(part, Exception):
                    raise part
                if isinstance(part, Event):
                    await asyncio.sleep(0)
                    yield part
                else:
                    await asyncio.sleep(part)
        finally:
            self.closed += 1


@dataclass
class PlayedService:
    """A service whose one model plays scripts. held: users of the model now."""

    llm: LLM
    scripts: list[Script]
    held: int = 0

    def __post_init__(self) -> None:
        self.model = PlayedModel("played", self.llm, self.scripts)

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self, deadline: float = 0.0) -> None:
        """Nothing to close."""

    def models(self) -> list[ModelInfo]:
        return [ModelInfo("played", "loaded", "hybrid", 4096), ModelInfo("other", "unloaded")]

    @asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[PlayedModel]:
        if name not in (None, "played"):
            raise ModelNotFoundError(f"no model {name!r} here; on offer: played")
        self.held += 1
        try:
            yield self.model
        finally:
            self.held -= 1
