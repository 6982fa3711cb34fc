"""/openapi.json: what this server takes, from the bodies that check it and the tables of routes.

Replies are described as far as errors go; their shapes are those of the APIs they imitate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mlx_qwen3._version import __version__
from mlx_qwen3.server.body import Body
from mlx_qwen3.server.endpoints import JSON, Endpoint

OPENAPI = Endpoint("GET", "/openapi.json", "This description")
ENDPOINTS = (OPENAPI,)
_PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")
_SCHEMAS = "#/components/schemas/"
# What any request may be answered with, and requests with a body on top of that.
_ALWAYS = {
    400: "The request is not as it should be",
    401: "The key is missing or wrong",
    403: "The Host or Origin is not allowed",
    404: "No such model, or path",
    405: "Another method is expected",
    431: "The headers are too large",
    500: "The server failed",
    503: "Nothing can be answered now: models load, or the engine failed",
}
_WITH_BODY = {
    408: "The body took too long",
    413: "The body is too large",
    415: "The body is not JSON by its name",
    429: "Too much to do; Retry-After says when to ask again",
}


def describe(endpoints: Iterable[Endpoint], *, keyed: bool) -> dict[str, Any]:
    """An OpenAPI 3.1 description. keyed: whether a key is asked."""
    table = list(endpoints)
    references, schemas = _schemas(endpoint.body for endpoint in table if endpoint.body)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in table:
        path = _PARAMETER.sub(r"{\1}", endpoint.path)
        operation = _operation(endpoint, references)
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    described = {
        "openapi": "3.1.0",
        "info": {"title": "mlx-qwen3", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _KEYS},
    }
    return described | ({"security": [{name: []} for name in _KEYS]} if keyed else {})


def routes(described: Mapping[str, Any]) -> list[Route]:
    """GET /openapi.json."""

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse(described)

    return [OPENAPI.route(answer)]


_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def _schemas(bodies: Iterable[type[Body]]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """How to refer to each body, and all schemas; APIs may call different things alike."""
    wanted: list[tuple[type[Body], JsonSchemaMode]] = [(body, "validation") for body in bodies]
    keyed, together = models_json_schema(wanted, ref_template=_SCHEMAS + "{model}")
    return {body: schema for (body, _), schema in keyed.items()}, together.get("$defs", {})


def _operation(endpoint: Endpoint, references: Mapping[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": dict(_responses(endpoint)),
    }
    parameters = [_parameter(found[1]) for found in _PARAMETER.finditer(endpoint.path)]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        content = {JSON: {"schema": references[endpoint.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _responses(endpoint: Endpoint) -> Iterator[tuple[str, Any]]:
    # Text that is no JSON has no schema to be held to.
    yield "200", {"description": "The reply", "content": {kind: {} for kind in endpoint.media}}
    errors = _ALWAYS | (_WITH_BODY if endpoint.body is not None else {})
    for status, text in errors.items():
        yield str(status), {"description": text, "content": {JSON: {"schema": {"type": "object"}}}}
