"""What Prometheus may ask: requests and their latencies, tokens, and the state of each engine when it is asked.

Which request it was is not known here: labels are models, routes and statuses, of which there are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ..engine.request import Stats
from ..errors import MissingExtra
from .loan import models_of
from .models import Models
from .record import Record

if TYPE_CHECKING:
    from prometheus_client.core import Metric

TYPE = "text/plain; version=0.0.4; charset=utf-8"
FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
SIZES = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)

Read = Callable[[Stats], Any]
GAUGES: tuple[tuple[str, str, Read], ...] = (
    ("requests_waiting", "Requests that wait for their turn", lambda stats: stats.waiting),
    ("requests_running", "Requests that are computed", lambda stats: stats.running),
    ("batch_rows", "Rows of the last step", lambda stats: stats.batch),
)
COUNTERS: tuple[tuple[str, str, Read], ...] = (
    ("steps", "Steps of the engine", lambda stats: stats.steps),
    ("engine_prompt_tokens", "Tokens of prompts that were computed or found", lambda stats: stats.prompt_tokens),
    ("engine_cached_tokens", "Tokens of prompts that were found in kept pages", lambda stats: stats.cached_tokens),
    ("engine_generated_tokens", "Tokens that were generated", lambda stats: stats.generated_tokens),
    ("engine_drafted_tokens", "Tokens that were drafted", lambda stats: stats.drafted_tokens),
    ("engine_accepted_tokens", "Drafted tokens that were right", lambda stats: stats.accepted_tokens),
    ("preemptions", "Requests that had to begin again because memory was short", lambda stats: stats.preemptions),
)
PAGES: tuple[tuple[str, str, Read], ...] = (
    ("pages_used", "Pages of keys and values that requests hold", lambda stats: stats.pages_used),
    ("pages_kept", "Pages that are held only for reuse", lambda stats: stats.pages_kept),
    ("pages", "Pages of keys and values that there are", lambda stats: stats.pages),
)

router = APIRouter(tags=["Operation"])


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    state = request.app.state
    if not hasattr(state, "metrics"):  # an app without a gate counts no requests
        state.metrics = Metrics(models_of(request))
    return Response(state.metrics.text(), media_type=TYPE)


class Metrics:
    """A registry of its own, so that several servers in one process do not mix. Raises MissingExtra."""

    def __init__(self, models: Models):
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError:
            raise MissingExtra("prometheus-client", "serve", "Serving") from None
        self._registry = CollectorRegistry()
        base: dict[str, Any] = {"namespace": "geode", "registry": self._registry}
        by = ["model", "route"]
        self._requests = Counter("requests", "Requests by status", [*by, "status"], **base)
        self._going = Gauge("http_requests_running", "HTTP requests that are being answered", **base)
        self._prompt = Counter("prompt_tokens", "Tokens of prompts", by, **base)
        self._cached = Counter("cached_tokens", "Tokens of prompts that were kept from before", by, **base)
        self._generated = Counter("generated_tokens", "Tokens of answers", by, **base)
        self._first = Histogram("time_to_first_token_seconds", "From request to first token", by, buckets=SLOW, **base)
        self._between = Histogram("time_between_tokens_seconds", "From token to token", by, buckets=FAST, **base)
        self._whole = Histogram("request_seconds", "From request to the end of its answer", by, buckets=SLOW, **base)
        self._queue = Histogram("queue_seconds", "Until a request's turn came", by, buckets=SLOW, **base)
        self._lengths = Histogram("answer_tokens", "Tokens of an answer", by, buckets=SIZES, **base)
        self._registry.register(_Engines(models))

    def begins(self, record: Record) -> None:
        self._going.inc()

    def between(self, record: Record, seconds: float, tokens: int) -> None:
        histogram = self._between.labels(record.model, record.route)
        for _ in range(tokens):
            histogram.observe(seconds)

    def ends(self, record: Record) -> None:
        self._going.dec()
        by = (record.model, record.route or "none")
        self._requests.labels(*by, str(record.status)).inc()
        self._whole.labels(*by).observe(record.seconds)
        if not record.prompt_tokens:
            return
        self._prompt.labels(*by).inc(record.prompt_tokens)
        self._cached.labels(*by).inc(record.cached_tokens)
        self._generated.labels(*by).inc(record.completion_tokens)
        self._queue.labels(*by).observe(record.queued)
        if record.first is not None:
            self._first.labels(*by).observe(record.first - record.begun)
            self._lengths.labels(*by).observe(record.completion_tokens)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        from prometheus_client import generate_latest

        return bytes(generate_latest(self._registry))


class _Engines:
    """What the engines say of themselves at the moment they are asked."""

    def __init__(self, models: Models):
        self._models = models

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client import core

        loaded = [(served, served.engine.stats()) for served in self._models.loaded()]
        gauge: Any = core.GaugeMetricFamily
        counter: Any = core.CounterMetricFamily
        held = gauge("geode_model_bytes", "Memory of weights, and of keys and values that are there", labels=["model"])
        for served, stats in loaded:
            held.add_metric([served.name], served.size + stats.kv_used)
        yield held
        for kind, rows in ((gauge, GAUGES), (counter, COUNTERS)):
            for name, about, read in rows:
                family = kind(f"geode_{name}", about, labels=["model"])
                for served, stats in loaded:
                    family.add_metric([served.name], read(stats))
                yield family
        for name, about, every in PAGES:
            family = gauge(f"geode_{name}", about, labels=["model", "group"])
            for served, stats in loaded:
                for group, count in enumerate(every(stats)):
                    family.add_metric([served.name, str(group)], count)
            yield family
