"""uvicorn around the application: from a bound socket to an orderly end.

The first SIGINT, SIGTERM or SIGHUP lets running replies finish within the deadline, the second
ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from mlx_qwen3.errors import EngineError
from mlx_qwen3.server.health import Lifetime
from mlx_qwen3.server.listener import Listener
from mlx_qwen3.server.protocol import patient_protocol
from mlx_qwen3.server.settings import ServerSettings

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ORPHANS_GRACE = 1.0  # seconds that an orphan gets to end in order
OPEN_FILES = 4096  # wanted; a Mac's shells start programs with 256
HEADERS_AT_ONCE = 64 * 1024  # bytes h11 holds before a request's headers are complete
_log = logging.getLogger(__name__)


@dataclass
class WayOut:
    """How this process ends when it cannot wait. server: once there is one."""

    listener: Listener
    server: GracefulServer | None = None

    def at_once(self, code: int) -> None:
        """End the process, leaving no socket behind."""
        self.listener.close()
        os._exit(code)

    def orphaned(self) -> None:
        """Nobody is there any more: end soon. Called on a thread that has nothing else to do."""
        if self.server is not None:
            self.server.hurry()
            time.sleep(ORPHANS_GRACE)
        self.at_once(0)


class GracefulServer(uvicorn.Server):
    """uvicorn's server, with our way to start and to end.

    on_ready: called once the service is ready. failure: why it never was, or why it is no more.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifetime: Lifetime,
        seconds: float,
        way_out: WayOut,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._lifetime = lifetime
        self._seconds = seconds
        self._way_out = way_out
        self._on_ready = on_ready
        self._announcing: asyncio.Task[None] | None = None

    def hurry(self) -> None:
        """End without waiting for replies. May be called from any thread."""
        self._seconds = 0.0
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take requests; the service starts meanwhile."""
        await super().startup(sockets)
        self._announcing = asyncio.create_task(self._announce(), name="announce")

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second. A new process is better than a dead engine."""
        reason = self._lifetime.fatal
        if reason is not None and self.failure is None:
            self.failure = EngineError(reason)
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, let replies finish, end those that do not."""
        seconds = 0.0 if self.failure else self._seconds
        loading = self._lifetime.status()[0] == "loading"
        if self.server_state.tasks and seconds:
            _log.info("waiting up to %g s for running replies; again Ctrl-C ends them", seconds)
        closing = asyncio.create_task(self._lifetime.close(seconds), name="close")
        self.config.timeout_graceful_shutdown = math.ceil(seconds) + bool(seconds)
        await super().shutdown(sockets)
        await closing
        if loading:  # on a thread that nothing can stop
            self._way_out.at_once(0)

    async def _announce(self) -> None:
        try:
            await self._lifetime.started()
            self._on_ready()
        except Exception as exc:  # noqa: BLE001 - raised where the server was run
            self.failure = exc
            self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals stop this server; uvicorn's would be raised again in the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks, the second does not."""
        if self.should_exit:
            self._way_out.at_once(128 + sig)
        self.should_exit = True


def run(
    app: Starlette, way_out: WayOut, settings: ServerSettings, on_ready: Callable[[], None]
) -> None:
    """Serve until a signal comes. Raises what kept the service from starting or going on."""
    allow_connections()
    lifetime: Lifetime = app.state.lifetime
    server = GracefulServer(
        _config(app, settings), lifetime, settings.shutdown_seconds, way_out, on_ready
    )
    way_out.server = server
    server.run([way_out.listener.socket])
    if server.failure is not None:
        raise server.failure


def allow_connections() -> None:
    """Let this process open more files than shells allow by default; each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _config(app: Starlette, settings: ServerSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=patient_protocol(settings.header_seconds),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,  # logs.configure is ours to call
        access_log=False,
        proxy_headers=False,  # nobody in front of us is believed unasked
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        h11_max_incomplete_event_size=HEADERS_AT_ONCE,
    )
