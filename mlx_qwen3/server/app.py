"""The application: every API, the page, and what watches over them.

app = create_app(Service({"demo": "demo"}), ServerSettings())
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_qwen3.server import (
    anthropic_messages,
    health,
    logs,
    metrics,
    openai_chat,
    openai_completions,
    openai_models,
    openai_responses,
    openapi,
)
from mlx_qwen3.server.anthropic_errors import anthropic_problem
from mlx_qwen3.server.assets import page_assets, page_routes
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.guard import Guard, render_for
from mlx_qwen3.server.health import Lifetime
from mlx_qwen3.server.metrics import Metrics
from mlx_qwen3.server.observer import Observer
from mlx_qwen3.server.openai_errors import openai_problem
from mlx_qwen3.server.problems import Problem, Render
from mlx_qwen3.server.record import Listeners, RequestRecord
from mlx_qwen3.server.settings import ServerSettings
from mlx_qwen3.service import Service

APIS = (
    openai_chat,
    openai_completions,
    openai_responses,
    openai_models,
    anthropic_messages,
)
# Shapes of errors below these paths, the longest first.
RENDERS = MappingProxyType[str, Render]({"/v1/messages": anthropic_problem, "": openai_problem})
OPEN_PATHS = frozenset({*(f"/{path}" for path in page_assets()), health.PATH})


def create_app(service: Service, settings: ServerSettings) -> Starlette:
    """An ASGI application that starts the service with its lifespan, and closes it.

    It answers from the first moment: while models load, /health says so. `app.state.lifetime`
    knows when the service is ready, or why it is not.
    """
    lifetime, numbers = Lifetime(service), Metrics(service)
    listeners = Listeners(numbers.gap, logs.log_texts if settings.log_prompts else None)

    def finish(record: RequestRecord, endpoint: str) -> None:
        numbers.finish(record, endpoint)
        logs.log_request(record, endpoint)

    app = Starlette(
        routes=_routes(service, settings, lifetime, numbers),
        middleware=[
            Middleware(Observer, listeners=listeners, finish=finish),
            Middleware(Guard, settings=settings, open_paths=OPEN_PATHS, renders=RENDERS),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=_lifespan(lifetime),
    )
    app.router.redirect_slashes = False  # a path is right or wrong; a redirect may lose a body
    app.state.lifetime = lifetime
    return app


def endpoints() -> list[Endpoint]:
    """Everything with a body or a reply of JSON, as /openapi.json describes it."""
    own = (*health.ENDPOINTS, *metrics.ENDPOINTS, *openapi.ENDPOINTS)
    return [*(endpoint for api in APIS for endpoint in api.ENDPOINTS), *own]


def _routes(
    service: Service, settings: ServerSettings, lifetime: Lifetime, numbers: Metrics
) -> list[Route]:
    apis = [route for api in APIS for route in api.routes(service, settings.limits)]
    described = openapi.describe(endpoints(), keyed=settings.api_key is not None)
    own = [*health.routes(lifetime), *metrics.routes(numbers), *openapi.routes(described)]
    return [*page_routes(), *apis, *own]


def _lifespan(
    lifetime: Lifetime,
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        lifetime.start()
        yield
        await lifetime.close()

    return lifespan


async def _unrouted(request: Request, error: Exception) -> Response:
    """An answer for paths and methods that nobody serves, in the shape of the API around them."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = getattr(error, "headers", None) or {}
    response = render_for(request.url.path, RENDERS)(Problem(status, _words(status, headers)))
    response.headers.update(headers)
    return response


def _words(status: int, headers: dict[str, str]) -> str:
    if status == 405:
        return f"this path takes {headers.get('Allow', 'another method')} only"
    return "nothing is served at this path; /openapi.json lists what is"
