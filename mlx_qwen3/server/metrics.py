"""/metrics: what the server did and what it holds, for Prometheus."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mlx_qwen3._version import __version__
from mlx_qwen3.server.endpoints import Endpoint
from mlx_qwen3.server.memory import resident_bytes
from mlx_qwen3.server.record import ReplyRecord, RequestRecord
from mlx_qwen3.service import Service

METRICS = Endpoint("GET", "/metrics", "Figures for Prometheus", kind="text/plain")
ENDPOINTS = (METRICS,)
PREFIX = "mlx_qwen3_"
_FIRST = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)  # seconds
_GAP = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)  # seconds
_WHOLE = (0.05, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)  # seconds
_RATE = (1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 250, 500)  # tokens per second

# Field of the service's statistics, name here, what it says.
_COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Tokens of prompts, cached ones included"),
    ("cached_tokens", "prefix_cache_hit_tokens", "Tokens of prompts that were not read again"),
    ("generated_tokens", "generated_tokens", "Tokens generated"),
    ("steps", "steps", "Steps of the engine"),
    ("failures", "reply_failures", "Replies that ended with an error"),
    ("preemptions", "preemptions", "Caches given up for others' growth, and read again later"),
    ("restarts", "engine_restarts", "Restarts of the engine's thread"),
    ("expert_lookups", "expert_lookups", "Experts that steps needed, where they are streamed"),
    ("expert_misses", "expert_misses", "Those of them that had to be read from disk"),
    ("expert_bytes_read", "expert_read_bytes", "Bytes read for them"),
)
_GAUGES = (
    ("waiting", "queue_depth", "Replies that wait for room"),
    ("running", "running", "Replies being generated"),
    ("kv_bytes", "kv_bytes", "Keys and values of running replies"),
    ("kv_budget", "kv_budget_bytes", "Most that keys and values may take"),
    ("store_bytes", "prefix_cache_bytes", "Caches kept in memory for prompts to come"),
)


class Metrics:
    """The numbers of one application, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(service))
        self._requests = self._counter("requests", "Requests", "endpoint", "method", "status")
        self._replies = self._counter("replies", "Replies, by their end", "model", "end")
        self._whole = self._histogram("request_seconds", "Whole requests", _WHOLE, "endpoint")
        self._first = self._histogram(
            "time_to_first_token_seconds", "From the request to the first token", _FIRST, "model"
        )
        self._gap = self._histogram(
            "inter_token_seconds", "From one piece of a reply to the next", _GAP, "model"
        )
        self._rate = self._histogram(
            "tokens_per_second", "Of each reply after its first token", _RATE, "model"
        )

    def gap(self, model: str, seconds: float) -> None:
        """A client waited this long between two pieces of a reply."""
        self._gap.labels(model).observe(seconds)

    def finish(self, record: RequestRecord, endpoint: str) -> None:
        """A request is over."""
        method = record.method if record.method in _METHODS else "other"
        self._requests.labels(endpoint, method, str(record.status)).inc()
        self._whole.labels(endpoint).observe(record.seconds)
        for reply in record.replies:
            self._count(reply)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)

    def _count(self, reply: ReplyRecord) -> None:
        self._replies.labels(reply.model, reply.end).inc()
        if reply.first is not None:
            self._first.labels(reply.model).observe(reply.first)
        if reply.completion is not None and reply.completion.timing.tokens_per_second:
            self._rate.labels(reply.model).observe(reply.completion.timing.tokens_per_second)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(
            PREFIX + name, text, labels, buckets=tuple(buckets), registry=self._registry
        )


_METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH")


class _State(Collector):
    """What is true now, asked when somebody looks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield from self._engine()
        yield from _memory()
        models = GaugeMetricFamily(PREFIX + "models", "Models on offer", labels=["state"])
        for state, count in Tally(model.state for model in self._service.models()).items():
            models.add_metric([state], count)
        yield models
        version = GaugeMetricFamily(PREFIX + "info", "This server", labels=["version"])
        version.add_metric([__version__], 1)
        yield version

    def _engine(self) -> Iterator[Metric]:
        statistics = self._service.statistics()
        for field, name, text in _COUNTERS:
            yield CounterMetricFamily(PREFIX + name, text, getattr(statistics, field))
        for field, name, text in _GAUGES:
            yield GaugeMetricFamily(PREFIX + name, text, getattr(statistics, field))


def _memory() -> Iterator[Metric]:
    import mlx.core as mx

    for name, text, size in (
        ("active", "Memory that MLX's arrays take", mx.get_active_memory()),
        ("cache", "Memory that MLX keeps to use again", mx.get_cache_memory()),
        ("peak", "Most memory that MLX's arrays took", mx.get_peak_memory()),
    ):
        yield GaugeMetricFamily(f"mlx_{name}_memory_bytes", text, size)
    resident = resident_bytes()
    if resident is not None:
        yield GaugeMetricFamily("process_resident_memory_bytes", "Of this process", resident)


def routes(metrics: Metrics) -> list[Route]:
    """GET /metrics."""

    async def scrape(request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [METRICS.route(scrape)]
