"""Every request gets a name, a record, and in the end a log line and its place in the metrics."""

from __future__ import annotations

import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_qwen3.server import record
from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.problems import GONE
from mlx_qwen3.server.record import Listeners, RequestRecord

HEADER = "X-Request-Id"
OTHER = "other"  # paths that nobody serves: their names are the client's, and without end
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

Finish = Callable[[RequestRecord, str], None]  # the record, and the path of its route


class Observer:
    """Outermost: sees refusals as well. finish: told each record when it is complete."""

    def __init__(self, app: ASGIApp, listeners: Listeners, finish: Finish) -> None:
        self._app = app
        self._listeners = listeners
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _ID.fullmatch(given) else new_id("req_")
        noted = RequestRecord(name, scope["method"], self._listeners)
        record.begin(noted)

        async def name_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                noted.status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self._app(scope, receive, name_and_send)
        finally:
            noted.status = noted.status or GONE
            self._finish(noted, getattr(scope.get("route"), "path", OTHER))
