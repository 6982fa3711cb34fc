"""The application: every API, the page, and what watches over them.

    app = create_app(Service({"demo": "demo"}), ServerSettings())
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_qwen3.server import health, logs, metrics, openapi
from mlx_qwen3.server.assets import page_assets, page_routes
from mlx_qwen3.server.guard import Guard, render_for
from mlx_qwen3.server.health import Lifetime
from mlx_qwen3.server.metrics import Metrics
from mlx_qwen3.server.observer import Observer
from mlx_qwen3.server.openai_errors import openai_problem
from mlx_qwen3.server.problems import Problem, Render
from mlx_qwen3.server.record import RequestRecord
from mlx_qwen3.server.settings import ServerSettings
from mlx_qwen3.service import Service

RENDERS: dict[str, Render] = {"": openai_problem}
OPEN_PATHS = frozenset({*(f"/{path}" for path in page_assets()), health.PATH})


def create_app(service: Service, settings: ServerSettings) -> Starlette:
    """An ASGI application that starts the service with its lifespan, and closes it.

    It answers from the first moment: while models load, /health says so. `app.state.lifetime`
    tells when the service is ready, and why it is not.
    """
    lifetime, numbers = Lifetime(service), Metrics(service)

    def finish(record: RequestRecord, endpoint: str) -> None:
        numbers.finish(record, endpoint)
        logs.log_request(record, endpoint)

    app = Starlette(
        routes=_routes(service, settings, lifetime, numbers),
        middleware=[
            Middleware(Observer, gap=numbers.gap, finish=finish),
            Middleware(Guard, settings=settings, open_paths=OPEN_PATHS, renders=RENDERS),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=_lifespan(lifetime),
    )
    app.router.redirect_slashes = False  # a path is right or wrong; a redirect loses bodies
    app.state.lifetime = lifetime
    return app
