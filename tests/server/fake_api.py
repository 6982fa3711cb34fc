"""The chat page behind a real server, with just enough of an OpenAI API to talk to.

Replies are played as a test wrote them down: what no model can be relied on to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlx_qwen3.server.assets import page_routes

Chunk = Mapping[str, Any]


@dataclass(frozen=True)
class Played:
    """A reply as a test wrote it: deltas, `pause` seconds apart.

    ends: whether the stream comes to its end, or breaks off after the last delta.
    """

    deltas: Sequence[Chunk]
    finish_reason: str = "stop"
    usage: Chunk | None = None
    pause: float = 0.0
    ends: bool = True


@dataclass(frozen=True)
class Refused:
    """An answer that is no reply."""

    status: int
    message: str = ""
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


NOTHING = Refused(500, "the test wrote no more replies")


@dataclass
class FakeApi:
    """What the server answers with, and what it was asked.

    replies: what comes next. requests: bodies, in order. streaming: replies being made now. key:
    asked of every request, where there is one.
    """

    replies: deque[Played | Refused] = field(default_factory=deque)
    requests: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "demo"}])
    streaming: int = 0
    key: str | None = None

    def app(self) -> Starlette:
        """Page and API as one application."""
        api = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        return Starlette(routes=[*page_routes(), *api])

    def play(self, *texts: str, **options: Any) -> None:
        """Let the next reply consist of these pieces of an answer."""
        self.replies.append(Played([{"content": text} for text in texts], **options))

    async def _models(self, request: Request) -> Response:
        if self._wants_key(request):
            return _refusal(Refused(401, "Missing or wrong API key"))
        return JSONResponse({"object": "list", "data": self.models})

    async def _chat(self, request: Request) -> Response:
        if self._wants_key(request):
            return _refusal(Refused(401, "Missing or wrong API key"))
        body = await request.json()
        self.requests.append(body)
        reply = self.replies.popleft() if self.replies else NOTHING
        if isinstance(reply, Refused):
            return _refusal(reply)
        return StreamingResponse(self._stream(self._play(reply)), media_type="text/event-stream")

    def _wants_key(self, request: Request) -> bool:
        return self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}"

    async def _stream(self, chunks: AsyncGenerator[Chunk, None]) -> AsyncIterator[str]:
        self.streaming += 1
        try:
            async for chunk in chunks:
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        finally:
            self.streaming -= 1
            await chunks.aclose()

    async def _play(self, reply: Played) -> AsyncGenerator[Chunk, None]:
        for delta in reply.deltas:
            yield _chunk(delta)
            await asyncio.sleep(reply.pause)
        if not reply.ends:
            raise ConnectionResetError("the test lets this stream break")
        yield _chunk({}, reply.finish_reason)
        if reply.usage is not None:
            yield {"choices": [], "usage": reply.usage}


@contextlib.contextmanager
def serving(app: Starlette, port: int = 0) -> Iterator[str]:
    """A real server on this machine (port 0: a free one); yields its address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        config = uvicorn.Config(
            app, log_level="critical", lifespan="on", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="page")
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def _event(chunk: Chunk) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _chunk(delta: Chunk, finish_reason: str | None = None) -> Chunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "choices": [choice], "usage": None}


def _refusal(refused: Refused) -> Response:
    error = {"message": refused.message, "type": "invalid_request_error", "code": refused.code}
    return JSONResponse({"error": error}, status_code=refused.status, headers=dict(refused.headers))
