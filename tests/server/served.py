"""APIs behind a real server, with the bundled demo model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from mlx_qwen3 import LLM
from mlx_qwen3.errors import ModelNotFoundError
from mlx_qwen3.generation.output import Event
from mlx_qwen3.generation.request import Request
from mlx_qwen3.server.body import Limits
from mlx_qwen3.service import Service
from tests.server.fake_api import serving

Routes = Callable[[Service, Limits], list[Route]]


def api_app(service: Service, *apis: Routes) -> Starlette:
    """One application of these APIs, which starts and closes the service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    routes = [route for api in apis for route in api(service, Limits())]
    return Starlette(routes=routes, lifespan=lifespan)


@contextlib.contextmanager
def demo_server(*apis: Routes) -> Iterator[str]:
    """The address of these APIs, the demo model under the name "demo"."""
    with serving(api_app(Service({"demo": "demo"}), *apis), lifespan="on") as address:
        yield address.rstrip("/")


@dataclass
class Scripted:
    """A service with one model, "demo": it checks requests for real and replies what is written.

    replies: events, and exceptions that end a reply where they stand.
    """

    llm: LLM
    replies: Sequence[Event | Exception]
    name: str = "demo"

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """Nothing to end."""

    @contextlib.asynccontextmanager
    async def use(self, name: str | None = None) -> AsyncIterator[Scripted]:
        """Itself, as the model."""
        if name not in (None, self.name):
            raise ModelNotFoundError(f"no model {name!r} here")
        yield self

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """The replies as they are written."""
        for event in self.replies:
            if isinstance(event, Exception):
                raise event
            yield event


@contextlib.contextmanager
def scripted_server(llm: LLM, replies: Sequence[Event | Exception], *apis: Routes) -> Iterator[str]:
    """The address of these APIs, in front of what is written."""
    service: Any = Scripted(llm, replies)
    with serving(api_app(service, *apis), lifespan="on") as address:
        yield address.rstrip("/")
