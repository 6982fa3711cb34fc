"""One MCP server: started or reached, listed, called, and let go. All of it on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlx_qwen3.agent.results import first_line, outcome_of
from mlx_qwen3.agent.servers import ServerSpec
from mlx_qwen3.agent.tools import Outcome

if TYPE_CHECKING:
    from mcp import Client

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "failed", "disabled"]

_PAGES = 50  # of a listing; a server that never stops paging cannot hold up a chat
_LOG_TAIL = 4096  # bytes of a server's stderr in which its last words are looked for


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a server gets to start (npx may have to download it) and to answer a call."""

    start: float = 60.0
    call: float = 120.0


@dataclass(frozen=True)
class Listing:
    """What a server offers, as the `mcp` package's own Tool, Resource and Prompt objects."""

    tools: tuple[Any, ...] = ()
    resources: tuple[Any, ...] = ()
    prompts: tuple[Any, ...] = ()


class Connection:
    """A server and the task that holds it open.

    The SDK's client must be entered and left by the same task; calls may come from any. A server
    that has died is started again by the next call, once per call. Nothing here raises because
    of what a server does: `state` and `problem` tell, and calls have an outcome.
    """

    def __init__(self, spec: ServerSpec, timeouts: Timeouts) -> None:
        self.spec = spec
        self.listing = Listing()
        self.state: State = "disabled" if spec.disabled else "starting"
        self.problem = ""
        self._timeouts = timeouts
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._log = tempfile.TemporaryFile("w")  # noqa: SIM115 - lives as long as this does

    async def start(self) -> None:
        """Connect and list; returns when that worked or failed."""
        if self.spec.disabled:
            return
        if self.spec.problem:
            return self._fail(self.spec.problem)
        await self._end()
        self.state, self._leave = "starting", asyncio.Event()
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._hold(ready))
        waiter = asyncio.create_task(ready.wait())
        await asyncio.wait(
            {self._task, waiter},
            timeout=self._timeouts.start,
            return_when=asyncio.FIRST_COMPLETED,
        )
        waiter.cancel()
        if not ready.is_set() and not self._task.done():
            await self._end()
            self._fail(f"did not start within {self._timeouts.start:g} s" + self._last_words())

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Outcome:
        """Call a tool. Cancelling the task tells the server so."""
        if self.state != "ready":
            await self.start()
        if self._client is None or self.state != "ready":
            return Outcome(f"the server {self.spec.name} {self.problem}", is_error=True)
        try:
            return await self._call(self._client, name, dict(arguments))
        except asyncio.TimeoutError:
            seconds = f"{self._timeouts.call:g} s"
            text = f"the server {self.spec.name} did not answer within {seconds}"
            return Outcome(text, is_error=True)
        except Exception as exc:  # noqa: BLE001 - a server's failure is the model's to read
            return await self._failed_call(exc)

    async def close(self) -> None:
        """End the server: stdin closed first, killed with its children if that is not enough."""
        await self._end()
        self._log.close()

    async def _call(self, client: Client, name: str, arguments: dict[str, Any]) -> Outcome:
        answer = client.call_tool(name, arguments)
        return outcome_of(await asyncio.wait_for(answer, self._timeouts.call))

    async def _failed_call(self, exc: Exception) -> Outcome:
        """What a call's failure means: an error the server reports, or its end."""
        if not _is_closed(exc):
            return Outcome(reason(exc), is_error=True)
        await self._end()
        self._fail("has ended" + self._last_words())
        return Outcome(f"the server {self.spec.name} {self.problem}", is_error=True)

    async def _hold(self, ready: asyncio.Event) -> None:
        """Keep the client open until `_leave`; sets `ready` when it may be used."""
        try:
            async with self._open() as client:
                self.listing = await _list(client)
                self._client, self.state, self.problem = client, "ready", ""
                ready.set()
                await self._leave.wait()
        except Exception as exc:  # noqa: BLE001 - whatever a server does, the chat goes on
            if not self._leave.is_set():
                self._fail(f"failed: {reason(exc)}" + self._last_words())
        finally:
            self._client = None

    def _open(self) -> Client:
        from mcp import Client, StdioServerParameters, stdio_client

        if self.spec.url:
            return Client(_http(self.spec), cache=None)
        started = StdioServerParameters(
            command=self.spec.command,
            args=list(self.spec.args),
            env=dict(self.spec.env),
            cwd=self.spec.cwd,
            encoding_error_handler="replace",
        )
        return Client(stdio_client(started, errlog=self._log), cache=None)

    async def _end(self) -> None:
        """End the server, whatever it is at, and the task that holds it."""
        self._leave.set()
        if self._task is not None:
            if self._client is None:  # still starting
                self._task.cancel()
            await asyncio.wait({self._task})

    def _fail(self, problem: str) -> None:
        self.state, self.problem = "failed", problem
        logger.warning("MCP server %s %s", self.spec.name, problem)

    def _last_words(self) -> str:
        """The last line a server wrote to stderr, which usually tells what is wrong."""
        # Not by seeking: the server writes at the position that this file shares with it.
        file = self._log.fileno()
        start = max(os.fstat(file).st_size - _LOG_TAIL, 0)
        text = os.pread(file, _LOG_TAIL, start).decode(errors="replace")
        line = first_line(text.splitlines()[::-1])
        return f' (its last words: "{line[:200]}")' if line else ""


@contextlib.asynccontextmanager
async def _http(spec: ServerSpec) -> AsyncIterator[Any]:
    """The transport of a server that is reached by HTTP, with its own headers."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    # A server may hold a response open for as long as a call may take.
    timeout = httpx2.Timeout(30.0, read=None)
    async with (
        httpx2.AsyncClient(headers=dict(spec.headers), timeout=timeout) as client,
        streamable_http_client(spec.url, http_client=client) as streams,
    ):
        yield streams


async def _list(client: Client) -> Listing:
    can = client.server_capabilities
    return Listing(
        await _pages(client.list_tools, "tools") if can.tools else (),
        await _optional(client.list_resources, "resources") if can.resources else (),
        await _optional(client.list_prompts, "prompts") if can.prompts else (),
    )


async def _optional(page: Callable[..., Awaitable[Any]], field: str) -> tuple[Any, ...]:
    """Resources and prompts are only shown: a server that cannot list them is still of use."""
    from mcp import MCPError

    try:
        return await _pages(page, field)
    except MCPError:
        return ()


async def _pages(page: Callable[..., Awaitable[Any]], field: str) -> tuple[Any, ...]:
    found: list[Any] = []
    cursor = None
    for _ in range(_PAGES):
        result = await page(cursor=cursor)
        found += getattr(result, field)
        cursor = result.next_cursor
        if not cursor:
            break
    return tuple(found)


def reason(exc: BaseException) -> str:
    """The first cause in a group of exceptions, in one line."""
    while nested := getattr(exc, "exceptions", None):
        exc = nested[0]
    return first_line([str(exc)]) or type(exc).__name__


def _is_closed(exc: Exception) -> bool:
    """Whether a call failed because the connection is gone."""
    import anyio
    from mcp.types import CONNECTION_CLOSED

    gone = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError)
    return isinstance(exc, gone) or getattr(exc, "code", None) == CONNECTION_CLOSED
