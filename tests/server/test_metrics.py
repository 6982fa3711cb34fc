"""/metrics: what Prometheus reads, after requests of every kind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlx_qwen3 import load
from mlx_qwen3._version import __version__
from mlx_qwen3.engine.statistics import Statistics
from mlx_qwen3.server.memory import resident_bytes
from mlx_qwen3.server.metrics import Metrics
from mlx_qwen3.service import Service
from tests.server.running import PATIENCE, question, running

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """A server nobody has asked anything yet."""
    with running() as found:
        yield found


def samples(text: str) -> Samples:
    """(name, labels) -> value, as a scraper reads the text."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def scrape(client: httpx.Client) -> Samples:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return samples(answer.text)


def scrape_until(client: httpx.Client, name: str, figure: float, **labels: str) -> Samples:
    """Scrape until this is so: a client has its answer a moment before its request is over."""
    deadline = time.monotonic() + PATIENCE
    while value(found := scrape(client), name, **labels) != figure:
        assert time.monotonic() < deadline, (name, value(found, name, **labels))
    return found


def test_requests_are_counted_by_where_and_how(client: httpx.Client) -> None:
    client.post("/v1/messages", json=question("What is 2 + 3?"))
    client.post("/v1/messages", json={"model": "demo"})
    client.get("/v1/models/demo")
    client.get("/v1/models/other-demo")
    for number in range(3):
        client.get(f"/no/such/path/{number}")
    nothing = {"endpoint": "other", "method": "GET", "status": "404"}
    found = scrape_until(client, "mlx_qwen3_requests_total", 3, **nothing)
    for endpoint, method, status, count in (
        ("/v1/messages", "POST", "200", 1),
        ("/v1/messages", "POST", "400", 1),
        ("/v1/models/{model:path}", "GET", "200", 1),
        ("/v1/models/{model:path}", "GET", "404", 1),
    ):
        labels = {"endpoint": endpoint, "method": method, "status": status}
        assert value(found, "mlx_qwen3_requests_total", **labels) == count
    assert value(found, "mlx_qwen3_request_seconds_count", endpoint="/v1/messages") == 2


def test_methods_that_nobody_knows_are_one(client: httpx.Client) -> None:
    for number in range(3):
        client.request(f"BREW{number}", "/")
    labels = {"endpoint": "/", "method": "other", "status": "405"}
    scrape_until(client, "mlx_qwen3_requests_total", 3, **labels)


def test_tokens_are_counted_by_the_engine(client: httpx.Client) -> None:
    usage = client.post("/v1/messages", json=question("What is 27 + 58?")).json()["usage"]
    found = scrape_until(client, "mlx_qwen3_running", 0)
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert value(found, "mlx_qwen3_prompt_tokens_total") == read
    assert value(found, "mlx_qwen3_generated_tokens_total") == usage["output_tokens"]
    assert (value(found, "mlx_qwen3_kv_budget_bytes") or 0) > 0


def test_replies_leave_their_times(client: httpx.Client) -> None:
    usage = client.post("/v1/messages", json=question("What is 27 + 58?")).json()["usage"]
    with client.stream("POST", "/v1/messages", json=question("Hello!", stream=True)) as stream:
        list(stream.iter_lines())
    found = scrape_until(client, "mlx_qwen3_replies_total", 2, model="demo", end="stop")
    first = "mlx_qwen3_time_to_first_token_seconds"
    assert value(found, f"{first}_count", model="demo") == 2
    assert (value(found, f"{first}_sum", model="demo") or 0) > 0
    gaps = value(found, "mlx_qwen3_inter_token_seconds_count", model="demo")
    assert gaps is not None
    assert gaps >= usage["output_tokens"] / 3  # some pieces are several tokens
    assert value(found, "mlx_qwen3_tokens_per_second_count", model="demo") == 2


def test_memory_is_that_of_this_process(client: httpx.Client) -> None:
    model = load("demo")  # beside the server's own: memory is counted by process
    weights = sum(array.nbytes for _, array in flat(model.model.parameters()))
    found = scrape(client)
    assert (value(found, "mlx_active_memory_bytes") or 0) >= weights
    assert (value(found, "mlx_peak_memory_bytes") or 0) >= weights
    assert value(found, "mlx_cache_memory_bytes") is not None
    resident = value(found, "process_resident_memory_bytes")
    assert resident is not None
    assert weights < resident < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def flat(parameters: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    return list(tree_flatten(parameters))


def test_resident_memory_grows_with_what_is_held() -> None:
    before = resident_bytes()
    held = os.urandom(1 << 26)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before > len(held) // 2


def test_models_and_version(client: httpx.Client) -> None:
    found = scrape(client)
    assert value(found, "mlx_qwen3_models", state="loaded") == 1
    assert value(found, "mlx_qwen3_info", version=__version__) == 1


class CountingService(Service):
    """A service that did a lot."""

    def statistics(self) -> Statistics:
        return Statistics(
            waiting=3,
            running=4,
            prompt_tokens=1000,
            cached_tokens=600,
            generated_tokens=500,
            steps=250,
            failures=2,
            preemptions=7,
            kv_bytes=1 << 20,
            kv_budget=1 << 30,
            store_bytes=1 << 21,
            restarts=1,
        )


def test_the_engines_own_figures() -> None:
    found = samples(Metrics(CountingService({"demo": "demo"})).text().decode())
    for name, figure in (
        ("queue_depth", 3),
        ("running", 4),
        ("prompt_tokens_total", 1000),
        ("prefix_cache_hit_tokens_total", 600),
        ("generated_tokens_total", 500),
        ("steps_total", 250),
        ("kv_bytes", 1 << 20),
        ("kv_budget_bytes", 1 << 30),
        ("prefix_cache_bytes", 1 << 21),
        ("reply_failures_total", 2),
        ("preemptions_total", 7),
        ("engine_restarts_total", 1),
    ):
        assert value(found, f"mlx_qwen3_{name}") == figure, name


def test_two_applications_count_apart() -> None:
    one, other = (Metrics(Service({"demo": "demo"})) for _ in range(2))
    one.gap("demo", 0.01)
    count = "mlx_qwen3_inter_token_seconds_count"
    assert value(samples(one.text().decode()), count, model="demo") == 1
    assert value(samples(other.text().decode()), count, model="demo") is None
