"""/health: can this server answer now, and if not, why."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mlx_qwen3._version import __version__
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.guard import AUTHORIZED
from mlx_qwen3.service import Service, ServiceState

PATH = "/health"
HEALTH = Endpoint("GET", PATH, "Whether this server can answer now")
ENDPOINTS = (HEALTH,)


class Lifetime:
    """A service from its start to its close. error: why it could not start."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._began = time.monotonic()

    def start(self) -> None:
        """Begin to start the service; requests are taken meanwhile."""
        self._task = asyncio.create_task(self._service.start(), name="start")

    async def started(self) -> None:
        """Return when the service is ready. Raises what kept it from starting."""
        if self._task is None:
            raise RuntimeError("started() before start()")
        await asyncio.shield(self._task)

    async def close(self, deadline: float = 0.0) -> None:
        """Let running replies finish for so many seconds, then end them.

        Called again, it waits for the end that was begun.
        """
        if self._closing is None:
            if self._task is not None:
                self._task.cancel()
            self._closing = asyncio.create_task(self._service.close(deadline), name="close")
        await asyncio.shield(self._closing)

    @property
    def error(self) -> BaseException | None:
        """Why the service did not start."""
        done = self._task is not None and self._task.done() and not self._task.cancelled()
        return self._task.exception() if done and self._task is not None else None

    def status(self) -> tuple[ServiceState, str | None]:
        """How the service is, and why. It loads until it was started, whatever it says itself."""
        if self.error is not None:
            return "failed", str(self.error)
        if self._task is None or not self._task.done():
            return "loading", None
        return self._service.status(), self._service.reason

    @property
    def fatal(self) -> str | None:
        """Why nothing but a new process will help, where that is so."""
        return (self._service.reason or "the engine failed") if self._service.fatal else None

    def describe(self) -> dict[str, Any]:
        """Everything about it, for those who have the key."""
        status, reason = self.status()
        return {
            "status": status,
            "reason": reason,
            "version": __version__,
            "seconds": round(time.monotonic() - self._began, 3),
            "models": [asdict(model) for model in self._service.models()],
        }


def routes(lifetime: Lifetime) -> list[Route]:
    """GET and HEAD /health: 200 when ready, 503 otherwise.

    Without the key it says only the status: load balancers and apps that wait need no more.
    """

    async def health(request: Request) -> JSONResponse:
        status, _ = lifetime.status()
        authorized = getattr(request.state, AUTHORIZED, False)
        said = lifetime.describe() if authorized else {"status": status}
        return JSONResponse(said, 200 if status == "ready" else 503)

    return [HEALTH.route(health)]
