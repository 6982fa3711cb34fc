"""OpenAI's models: which ones are on offer."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mlx_qwen3.errors import ModelNotFoundError
from mlx_qwen3.server.body import Limits
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.openai_errors import openai_problem
from mlx_qwen3.server.problems import answering
from mlx_qwen3.service import ModelInfo, Service

OWNER = "mlx-qwen3"

ENDPOINTS = (
    Endpoint("GET", "/v1/models", "The models on offer"),
    Endpoint("GET", "/v1/models/{model:path}", "One model"),
)


def model_object(info: ModelInfo, created: int) -> dict[str, Any]:
    """A model as OpenAI lists it. created: seconds since 1970.

    thinking ("hybrid", "always" or "never") and context_length (tokens) are this server's own,
    there once the model was loaded.
    """
    known = {"thinking": info.mode, "context_length": info.context_length}
    return {
        "id": info.name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        **{name: value for name, value in known.items() if value is not None},
    }


def routes(service: Service, limits: Limits) -> list[Route]:
    """The routes of models. limits: none of them matter here."""
    created = int(time.time())  # when they came on offer

    @answering(openai_problem)
    async def listed(request: Request) -> Response:
        data = [model_object(info, created) for info in service.models()]
        return JSONResponse({"object": "list", "data": data})

    @answering(openai_problem)
    async def one(request: Request) -> Response:
        name = request.path_params["model"]
        infos = {info.name: info for info in service.models()}
        if name not in infos:
            raise ModelNotFoundError(f"no model {name!r} here; on offer: {', '.join(infos)}")
        return JSONResponse(model_object(infos[name], created))

    return [ENDPOINTS[0].route(listed), ENDPOINTS[1].route(one)]
