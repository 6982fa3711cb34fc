"""Server-sent events: how they are written, kept alive, and ended when nobody listens any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_qwen3.server.endpoints import SSE
from mlx_qwen3.server.problems import Disconnected

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 10.0  # proxies and clients give up on silence after half a minute or so

Chunks = AsyncGenerator[bytes, None]
_T = TypeVar("_T")


def sse(payload: Any, event: str | None = None) -> bytes:
    """One event: its name, where the API has names, and a line of JSON."""
    name = "" if event is None else f"event: {event}\n"
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    return f"{name}data: {text}\n\n".encode()


async def kept_alive(
    chunks: Chunks, seconds: float = KEEP_ALIVE_SECONDS, filler: bytes = KEEP_ALIVE
) -> Chunks:
    """The chunks, with `filler` between them whenever nothing came for so long."""
    async with aclosing(chunks):
        waiting = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(chunks, None))
                await asyncio.wait({waiting}, timeout=seconds)
                if not waiting.done():
                    yield filler
                    continue
                chunk, waiting = waiting.result(), None
                if chunk is None:
                    return
                yield chunk
        finally:
            if waiting is not None:
                await _stop(waiting)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled as soon as the client goes away.

    receive: of a request whose body was read. Raises Disconnected, and what `work` raises.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Disconnected
        return working.result()
    finally:
        await _stop(working, watching)


class EventStream(Response):
    """A response of server-sent events. A client that goes away ends it at once.

    close: awaited at the end, whatever that is; also when nothing of `chunks` was ever read.
    """

    media_type = SSE

    def __init__(
        self,
        chunks: Chunks,
        close: Callable[[], Awaitable[None]],
        *,
        keep_alive: bytes = KEEP_ALIVE,
        seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._chunks = kept_alive(chunks, seconds, keep_alive)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(Disconnected):
                await while_connected(receive, self._send(send))
        finally:
            await self._close()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel them, and wait until they are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
