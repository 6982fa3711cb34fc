"""APIs behind a real server, with the bundled demo model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.applications import Starlette
from starlette.routing import Route

from mlx_qwen3.server.body import Limits
from mlx_qwen3.service import Service
from tests.server.fake_api import serving

Routes = Callable[[Service, Limits], list[Route]]


def api_app(service: Service, *apis: Routes) -> Starlette:
    """One application of these APIs, which starts and closes the service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    routes = [route for api in apis for route in api(service, Limits())]
    return Starlette(routes=routes, lifespan=lifespan)


@contextlib.contextmanager
def demo_server(*apis: Routes) -> Iterator[str]:
    """The address of these APIs, the demo model under the name "demo"."""
    with serving(api_app(Service({"demo": "demo"}), *apis), lifespan="on") as address:
        yield address.rstrip("/")
