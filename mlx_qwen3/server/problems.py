"""What can go wrong with a request, before it has the shape of anybody's API.

Anyone raises a `Problem`; errors of this package become one in `explain`. Each API renders it.
"""

from __future__ import annotations

import functools
import logging
import math
import traceback
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mlx_qwen3.errors import (
    BusyError,
    ContextOverflowError,
    EngineError,
    ModelNotFoundError,
    OptionError,
    SchemaError,
    TemplateError,
)

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
GONE = 499  # nobody reads it; logs and metrics tell a client that left from one that was served


class Problem(Exception):  # noqa: N818 - as HTTP calls it
    """Why a request gets no reply. message: one line for a person.

    status: HTTP's. param: the field it is about, as in "messages[0].role". code: a word for
    programs. retry_after: seconds after which to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to it, whatever the API: Retry-After in whole seconds."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class Disconnected(Exception):  # noqa: N818 - no error of anybody's
    """The client went away, so there is nobody to reply to."""


Render = Callable[[Problem], Response]

# The first class that fits counts. What is not here is our fault.
_STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (ContextOverflowError, 400, "context_length_exceeded"),
    (ModelNotFoundError, 404, "model_not_found"),
    (SchemaError, 400, "invalid_schema"),
    (OptionError, 400, "invalid_value"),
    (TemplateError, 400, "invalid_messages"),
    (EngineError, 503, "engine_failed"),
)


def explain(error: Exception) -> Problem:
    """The problem an exception is for the client; one that nobody expected is logged here."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BusyError):
        return Problem(429, str(error), code="server_busy", retry_after=error.retry_after)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, error.detail)
    if isinstance(error, Disconnected | ClientDisconnect):
        return Problem(GONE, "the client went away")
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return Problem(status, str(error), code=code)
    _log_unexpected(error)
    return Problem(500, "the server failed at this request; its log says where", code="internal")


def answering(render: Render) -> Callable[[Handler], Handler]:
    """A decorator of handlers: whatever they raise is answered in one API's shape."""

    def decorate(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except Exception as exc:  # noqa: BLE001 - `explain` logs what is not the client's
                return render(explain(exc))

        return answer

    return decorate


def _log_unexpected(error: Exception) -> None:
    """Where it came from, not what it says: its message may hold text of a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    _log.error("%s while a request was answered\n%s", type(error).__name__, frames)
