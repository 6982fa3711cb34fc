"""MCP servers behind plain functions: the asyncio side runs on a thread of its own."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import threading
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mlx_qwen3.agent.connection import Connection, Timeouts
from mlx_qwen3.agent.servers import ServerSpec, read_servers
from mlx_qwen3.agent.tools import Outcome, Tool
from mlx_qwen3.errors import McpError

T = TypeVar("T")

_ENDING = 10.0  # seconds; the SDK kills a server that has not ended after about six


class McpServers:
    """The servers of a file (or of the mapping it would hold), started at once, side by side.

    Construction returns at once; `wait` and whatever needs the servers wait for them. `close`, or
    the end of the program, ends every server. Safe to use from several threads.
    Raises McpError when the list cannot be read or the `mcp` package is not installed.
    """

    def __init__(
        self, source: str | Path | Mapping[str, Any], *, timeouts: Timeouts | None = None
    ) -> None:
        specs = read_servers(source)
        if not all(spec.disabled for spec in specs):
            _require_sdk()
        self._loop = asyncio.new_event_loop()
        self._connections: list[Connection] = []
        self._thread = threading.Thread(
            target=_serve, args=(self._loop,), name="mlx-qwen3-mcp", daemon=True
        )
        self._thread.start()
        self._started = self._submit(self._start(specs, timeouts or Timeouts()))
        # At the end of the program too, and when this is forgotten: no server outlives us.
        self._close = weakref.finalize(self, _close, self._loop, self._thread, self._connections)

    def __enter__(self) -> McpServers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connections(self) -> Sequence[Connection]:
        """Every server with its state, problem and listing, once all have started or failed."""
        self.wait()
        return self._connections

    def wait(self) -> None:
        """Until every server has started or failed."""
        self._started.result()

    def tools(self) -> list[Tool]:
        """The tools of all servers that are up."""
        return [
            _tool(self, connection, listed)
            for connection in self.connections
            for listed in connection.listing.tools
        ]

    def call(self, connection: Connection, name: str, arguments: Mapping[str, Any]) -> Outcome:
        """Call a tool and wait. Whatever interrupts the wait (Ctrl-C) cancels the call."""
        future = self._submit(connection.call(name, arguments))
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End all servers; safe to call twice. Takes as long as they need, at most seconds."""
        self._close()
        if not self._started.done():  # it went with its loop, and nobody is to wait for it
            self._started.set_result(None)

    async def _start(self, specs: Sequence[ServerSpec], timeouts: Timeouts) -> None:
        self._connections += [Connection(spec, timeouts) for spec in specs]
        await asyncio.gather(*(connection.start() for connection in self._connections))

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _require_sdk() -> None:
    """The SDK takes most of a second to import, which its thread does; here it is looked for."""
    try:
        version = importlib.metadata.version("mcp")
    except importlib.metadata.PackageNotFoundError:
        raise McpError("MCP servers need the mcp package: pip install 'mlx-qwen3[mcp]'") from None
    if int(version.split(".")[0]) < 2:
        raise McpError(f"mcp {version} is too old, expected 2.0: pip install 'mlx-qwen3[mcp]'")


def _tool(servers: McpServers, connection: Connection, listed: Any) -> Tool:
    function = {
        "name": listed.name,
        "description": listed.description or "",
        "parameters": listed.input_schema,
    }
    return Tool(
        listed.name,
        {"type": "function", "function": function},
        partial(servers.call, connection, listed.name),
        connection.spec.name,
    )


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    # What the SDK logs (every line of a server's that is no JSON, with a traceback) would
    # otherwise go to stderr; who wants it configures logging.
    logging.getLogger("mcp").addHandler(logging.NullHandler())
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _close(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, connections: list[Connection]
) -> None:
    """End the servers, then the loop, then its thread."""

    async def end() -> None:
        await asyncio.gather(*(connection.close() for connection in connections))
        loop.stop()

    if thread.is_alive():
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(_ENDING)
