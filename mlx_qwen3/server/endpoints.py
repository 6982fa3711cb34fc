"""What an API offers at one address, said once: for the router and for /openapi.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from starlette.routing import Route

from mlx_qwen3.server.body import Body
from mlx_qwen3.server.problems import Handler

JSON, SSE = "application/json", "text/event-stream"


@dataclass(frozen=True)
class Endpoint:
    """One method at one path.

    Every API module has `ENDPOINTS: tuple[Endpoint, ...]`, which needs no service to be read,
    and `routes(service, limits)`, which gives each its handler.
    path: starlette's form ("{model:path}"). body: its JSON schema is `body.model_json_schema()`.
    streams: whether `"stream": true` in the body makes the reply server-sent events.
    kind: media type of a reply that does not stream.
    """

    method: Literal["GET", "POST"]
    path: str
    summary: str
    body: type[Body] | None = None
    streams: bool = False
    kind: str = JSON

    @property
    def media(self) -> tuple[str, ...]:
        """Media types of what it replies with."""
        return (self.kind, SSE) if self.streams else (self.kind,)

    def route(self, handler: Handler) -> Route:
        """The route that leads to a handler of it."""
        return Route(self.path, handler, methods=[self.method])
