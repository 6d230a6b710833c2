"""Requests as OpenTelemetry spans, sent to where OTEL_EXPORTER_OTLP_ENDPOINT says; only with the extra `traces`.

Names of attributes are those of opentelemetry.io/docs/specs/semconv/gen-ai. Prompts and answers are never sent.
"""

from __future__ import annotations

import threading
from typing import Any

from ..errors import MissingExtra
from .record import Record

PARTING = 3.0  # seconds that the last spans have to be sent, once the server has ended


class Traces:
    """A span for each request, and within it what the queue, the prompt and the answer took. Raises MissingExtra."""

    def __init__(self, exporter: Any = None):
        try:
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise MissingExtra("opentelemetry-sdk", "traces", "Writing traces") from None
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter()))
        self._tracer = self._provider.get_tracer("geode.serve")

    def begins(self, record: Record) -> None:
        pass

    def between(self, record: Record, seconds: float, tokens: int) -> None:
        pass

    def ends(self, record: Record) -> None:
        """The span is made whole when all is known: nothing is kept while a request runs."""
        from opentelemetry import trace

        if not record.route:
            return  # what was refused before it got to the app is counted, not traced
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            context=_parent(record.parent),
            kind=trace.SpanKind.SERVER,
            start_time=record.begun_ns,
            attributes=_attributes(record),
        )
        if record.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        for name, start, end in _parts(record):
            child = self._tracer.start_span(
                name, context=trace.set_span_in_context(span), start_time=_wall(record, start)
            )
            child.end(_wall(record, end))
        span.end(_wall(record, record.ended))

    def close(self) -> None:
        """Sends what is left, to a receiver that takes it in time: one that is away keeps nobody from leaving."""
        sending = threading.Thread(target=self._provider.shutdown, name="geode-traces", daemon=True)
        sending.start()
        sending.join(PARTING)


def _resource() -> Any:
    """Who sends: as OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, else geode."""
    from opentelemetry.sdk.resources import Resource

    found = Resource.create()
    is_named = not str(found.attributes["service.name"]).startswith("unknown_service")
    return found if is_named else found.merge(Resource({"service.name": "geode"}))


def _exporter() -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise MissingExtra("opentelemetry-exporter-otlp-proto-http", "traces", "Writing traces") from None
    return OTLPSpanExporter()


def _attributes(record: Record) -> dict[str, Any]:
    every = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "geode.request_id": record.id,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.response.finish_reasons": [record.finish] if record.finish else [],
        "error.type": record.error,
    }
    return {name: value for name, value in every.items() if value}


def _parts(record: Record) -> list[tuple[str, float, float]]:
    """What a request's time was spent with: name, start, end."""
    if record.first is None:
        return []
    begun = record.begun + record.queued
    return [("queue", record.begun, begun), ("prompt", begun, record.first), ("answer", record.first, record.last)]


def _wall(record: Record, moment: float) -> int:
    """Nanoseconds since 1970 of a moment."""
    return record.begun_ns + max(0, int((moment - record.begun) * 1e9))


def _parent(header: str) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": header}) if header else None
