"""OpenAI's shape of an error: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from mlx_qwen3.server.events import sse
from mlx_qwen3.server.problems import Problem

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def openai_error(problem: Problem) -> dict[str, Any]:
    """The JSON of a problem, also inside a stream."""
    general = "server_error" if problem.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": problem.message,
            "type": _TYPES.get(problem.status, general),
            "param": problem.param,
            "code": problem.code,
        }
    }


def openai_problem(problem: Problem) -> JSONResponse:
    """The answer a problem is."""
    return JSONResponse(openai_error(problem), problem.status, problem.headers)


def openai_failed(problem: Problem) -> bytes:
    """How a stream says that it broke off. No [DONE] follows: it is not done."""
    return sse(openai_error(problem))
