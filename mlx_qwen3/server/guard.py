"""Who may ask, and how much: checked before a request gets to anything else.

Pure ASGI, so that streams pass through as they are. A refusal has the shape of the API whose
path was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_qwen3.server.cors import Cors
from mlx_qwen3.server.problems import Problem, Render, explain
from mlx_qwen3.server.settings import ServerSettings

Check = Callable[[Scope, Headers], Problem | None]

AUTHORIZED = "authorized"  # in scope["state"]: whether the request has the key, or none is asked
LINGER = 2.0  # seconds for which a refused body is still taken, so that its sender reads why
# On every answer that does not say otherwise; the page's files have their own.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_SHOWN = 80  # characters of a header in an error


class Guard:
    """Refuses what is not allowed; the rest goes to `app` with security headers and CORS.

    open_paths: what may be fetched without the key. renders: path prefix -> shape of errors
    below it, longest first; "" for all others.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        open_paths: Collection[str],
        renders: Mapping[str, Render],
    ) -> None:
        self._app = app
        self._renders = renders
        self._body_bytes = settings.limits.body_bytes
        self._body_seconds = settings.body_seconds
        self._cors = Cors(settings.allow_origins)
        self._before_key = (_size(settings), _host(settings), self._cors.check)
        self._key = _key(settings.api_key)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, headers, self._body_bytes, self._body_seconds)
        answer = _Answer(send, body, self._cors.headers(headers))
        try:
            problem = self._refusal(scope, headers)
            if problem is not None:
                raise problem
            if self._cors.is_preflight(scope, headers):
                await answer.empty(204, self._cors.preflight(headers))
            else:
                await self._app(scope, body.receive, answer.send)
        except Exception as exc:  # noqa: BLE001 - `explain` logs what nobody expected
            await self._refuse(scope, explain(exc), body, answer)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        for check in self._before_key:
            problem = check(scope, headers)
            if problem is not None:
                return problem
        problem = self._key(scope, headers)
        scope.setdefault("state", {})[AUTHORIZED] = problem is None
        if scope["path"] in self._open_paths or self._cors.is_preflight(scope, headers):
            problem = None
        return problem or _declared(headers, self._body_bytes)

    async def _refuse(self, scope: Scope, problem: Problem, body: _Body, answer: _Answer) -> None:
        """Say why; too late within an answer, whose missing end tells the client."""
        if answer.started:
            return
        response = render_for(scope["path"], self._renders)(problem)
        if problem.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        await response(scope, body.receive, answer.send)


def render_for(path: str, renders: Mapping[str, Render]) -> Render:
    """The shape of errors at a path."""
    return next(render for prefix, render in renders.items() if path.startswith(prefix))


class _Body:
    """A request's body on its way in, within limits of size and time."""

    def __init__(self, receive: Receive, headers: Headers, most: int, seconds: float) -> None:
        self._receive = receive
        self._most = most
        self._seconds = seconds
        self._size = 0
        self._deadline: float | None = None
        has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self.complete = not has_body

    async def receive(self) -> Message:
        """The next message. Raises Problem 413 or 408; once complete, only waits for the end."""
        if self.complete:
            return await self._receive()
        message = await self._next()
        if message["type"] != "http.request":
            return message
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _too_large(self._most)
        self.complete = not message.get("more_body", False)
        return message

    async def discard(self, seconds: float) -> None:
        """Read and forget what still comes, for so long at most."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(), seconds)

    async def _discard(self) -> None:
        while not self.complete:
            message = await self._receive()
            self.complete = not message.get("more_body", False)

    async def _next(self) -> Message:
        loop = asyncio.get_running_loop()
        if self._deadline is None:
            self._deadline = loop.time() + self._seconds
        try:
            return await asyncio.wait_for(self._receive(), self._deadline - loop.time())
        except asyncio.TimeoutError:
            raise Problem(
                408, f"the body did not arrive within {self._seconds:g} seconds", code="timeout"
            ) from None


class _Answer:
    """A response on its way out, with the headers that every one carries.

    One that does not wait for the request's body still takes it, for a moment, and then hangs up:
    whoever closes while the other side sends resets the connection, and the answer is never read.
    """

    def __init__(self, send: Send, body: _Body, extra: Mapping[str, str]) -> None:
        self._send = send
        self._body = body
        self._extra = extra
        self.started = False

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.started = True
            self._complete(MutableHeaders(scope=message))
        elif not (self._body.complete or message.get("more_body", False)):
            await self._send({**message, "more_body": True})
            await self._body.discard(LINGER)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _complete(self, headers: MutableHeaders) -> None:
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        headers.update(self._extra)
        if not self._body.complete:
            headers["Connection"] = "close"

    async def empty(self, status: int, headers: Mapping[str, str]) -> None:
        """A whole answer without a body."""
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": b""})


def _size(settings: ServerSettings) -> Check:
    """Headers may be this many and this large."""

    def check(scope: Scope, headers: Headers) -> Problem | None:
        size = sum(len(name) + len(value) for name, value in headers.raw)
        if len(headers.raw) <= settings.header_count and size <= settings.header_bytes:
            return None
        return Problem(
            431,
            f"{len(headers.raw)} headers of {size} bytes; this server takes at most "
            f"{settings.header_count} of {settings.header_bytes}",
            code="headers_too_large",
        )

    return check


def _host(settings: ServerSettings) -> Check:
    """Only names that are this server's: a page elsewhere may point its own name at us."""
    names = settings.allowed_hosts
    allowed = frozenset(name.lower() for name in names or ())

    def check(scope: Scope, headers: Headers) -> Problem | None:
        if names is None:
            return None
        given = headers.get("host", "")
        name = host_name(given)
        if name in allowed or (settings.any_address and _is_address(name)):
            return None
        return Problem(
            403,
            f"Host {given[:_SHOWN]!r} is not a name of this server; "
            "serve --allowed-host NAME allows one",
            code="host_not_allowed",
        )

    return check


def host_name(host: str) -> str:
    """The name or address in a Host header, lower case, without port; "" for what is no host."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found else ""


def _is_address(name: str) -> bool:
    try:
        return not ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


def _key(api_key: str | None) -> Check:
    """The key, where there is one; compared in a time that tells nothing about it."""
    digest = None if api_key is None else _digest(api_key)

    def check(scope: Scope, headers: Headers) -> Problem | None:
        if digest is None:
            return None
        given = list(_keys(headers))
        if True in [hmac.compare_digest(_digest(key), digest) for key in given]:
            return None
        word = "wrong" if given else "missing"
        return Problem(
            401,
            f"the API key is {word}; expected it as Authorization: Bearer KEY, or as x-api-key",
            code="invalid_api_key",
        )

    return check


def _keys(headers: Headers) -> Iterable[str]:
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield key.strip()
    if "x-api-key" in headers:
        yield headers["x-api-key"]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _declared(headers: Headers, most: int) -> Problem | None:
    """A body that says itself that it is too large."""
    length = headers.get("content-length", "")
    too_large = length.isdecimal() and (len(length) > 18 or int(length) > most)
    return _too_large(most) if too_large else None


def _too_large(most: int) -> Problem:
    return Problem(413, f"the body is larger than {most} bytes", code="body_too_large")
