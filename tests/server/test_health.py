"""/health: loading, ready, failed; and to whom it says more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from mlx_qwen3.errors import EngineError, WeightsError
from mlx_qwen3.server.app import create_app
from mlx_qwen3.server.health import Lifetime
from mlx_qwen3.server.listener import listen_tcp
from mlx_qwen3.server.run import WayOut, run
from mlx_qwen3.server.settings import ServerSettings
from mlx_qwen3.service import ModelInfo, Service
from tests.server.fake_api import serving
from tests.server.running import PATIENCE


class SlowService(Service):
    """A service that starts when the test lets it, or fails to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__({"slow": "nowhere"})
        self.may_start = threading.Event()
        self.closings: list[float] = []
        self._error = error

    async def start(self) -> None:
        await asyncio.to_thread(self.may_start.wait, PATIENCE)
        if self._error is not None:
            raise self._error
        self._state = "ready"

    async def close(self, deadline: float = 30.0) -> None:
        self.closings.append(deadline)
        await super().close(deadline)

    def models(self) -> list[ModelInfo]:
        return [ModelInfo("slow", "loading")]


@contextmanager
def asked(service: Service, settings: ServerSettings) -> Iterator[Callable[[], httpx.Response]]:
    """A function that asks a server of this service for its health, with the key."""
    app = create_app(service, settings)
    with (
        serving(app) as address,
        httpx.Client(headers={"x-api-key": settings.api_key or ""}, trust_env=False) as client,
    ):
        yield lambda: client.get(f"{address}health")


def after(ask: Callable[[], httpx.Response], status: str) -> httpx.Response:
    """The first answer that says something else."""
    while (answer := ask()).json()["status"] == status:
        pass
    return answer


def test_loading_and_then_ready() -> None:
    service = SlowService()
    with asked(service, ServerSettings()) as ask:
        loading = ask()
        assert loading.status_code == 503
        assert loading.json()["status"] == "loading"
        assert loading.json()["models"] == [
            {
                "name": "slow",
                "state": "loading",
                "mode": None,
                "context_length": None,
                "failure": None,
            }
        ]
        service.may_start.set()
        ready = after(ask, "loading")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert ready.json()["reason"] is None


def test_failed_and_why() -> None:
    service = SlowService(WeightsError("/home/me/models/x has no weights"))
    service.may_start.set()
    with asked(service, ServerSettings()) as ask:
        failed = after(ask, "loading")
        assert failed.status_code == 503
        assert failed.json()["status"] == "failed"
        assert failed.json()["reason"] == "/home/me/models/x has no weights"


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_the_key_it_says_only_how_it_is(key: str) -> None:
    service = SlowService(WeightsError("/home/me/models/x has no weights"))
    service.may_start.set()
    with asked(service, ServerSettings(api_key="right")) as ask:
        assert after(ask, "loading").json()["reason"] is not None
        stranger = httpx.get(str(ask().url), headers={"x-api-key": key}, trust_env=False)
        assert stranger.status_code == 503
        assert stranger.json() == {"status": "failed"}


def test_head_is_answered_as_get_without_a_body() -> None:
    service = SlowService()
    with asked(service, ServerSettings()) as ask:
        answer = httpx.head(str(ask().url), trust_env=False)
        service.may_start.set()
    assert (answer.status_code, answer.content) == (503, b"")


def test_a_service_is_closed_once() -> None:
    async def live() -> list[float]:
        service = SlowService()
        service.may_start.set()
        lifetime = Lifetime(service)
        lifetime.start()
        await lifetime.started()
        await asyncio.gather(lifetime.close(7.0), lifetime.close())
        return service.closings

    assert asyncio.run(live()) == [7.0]


def test_a_service_that_never_started_can_be_closed() -> None:
    async def live() -> list[float]:
        service = SlowService()
        lifetime = Lifetime(service)
        with pytest.raises(RuntimeError):
            await lifetime.started()
        lifetime.start()
        await lifetime.close(1.0)
        service.may_start.set()
        return service.closings

    assert asyncio.run(live()) == [1.0]


class BrokenService(Service):
    """A service that says it will never work again."""

    broken = False

    @property
    def fatal(self) -> bool:
        return self.broken

    @property
    def reason(self) -> str | None:
        return "the device is gone" if self.broken else None


def test_an_engine_that_is_given_up_ends_the_server() -> None:
    """Whoever started it starts another; one that cannot reply serves nobody."""
    service, settings = BrokenService({"demo": "demo"}), ServerSettings()
    way_out = WayOut(listen_tcp("127.0.0.1", 0))

    def breaks() -> None:
        service.broken = True

    with pytest.raises(EngineError, match="the device is gone"):
        run(create_app(service, settings), way_out, settings, breaks)
    way_out.listener.close()
