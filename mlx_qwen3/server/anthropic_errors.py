"""Anthropic's shape of an error: {"type": "error", "error": {"type", "message"}, "request_id"}."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from mlx_qwen3.server.ids import new_id
from mlx_qwen3.server.problems import Problem
from mlx_qwen3.server.record import current

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def new_request_id() -> str:
    """The name of the request that is being answered, as in the log; a new one elsewhere."""
    record = current()
    return new_id("req_") if record is None else record.request_id


def anthropic_error(problem: Problem, request_id: str) -> dict[str, Any]:
    """The JSON of a problem, also inside a stream."""
    general = "api_error" if problem.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(problem.status, general)
    error = {"type": kind, "message": problem.message}
    return {"type": "error", "error": error, "request_id": request_id}


def anthropic_problem(problem: Problem) -> JSONResponse:
    """The answer a problem is."""
    request_id = new_request_id()
    headers = {**problem.headers, "request-id": request_id}
    return JSONResponse(anthropic_error(problem, request_id), problem.status, headers)
