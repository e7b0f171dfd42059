"""Traces (W3C trace context): the gate's span of a request, between its caller's span and Triton's.

OpenTelemetry's instrumentation of ASGI and gRPC is not used: it is beta, and knows neither outcomes nor stages.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

HEADERS = ("traceparent", "tracestate")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FLUSH_S = 2.0
"""For the last spans when the gate ends; those that a collector does not take by then are lost."""

_MAX_CHARS = 512
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]([0-9a-f])(-.*)?")


class Trace:
    """One request's part of a trace; without an exporter, what the caller sent, which is handed on.

    Args:
        headers: the request's, by names in lower case.
    """

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self._carried = {name: value for name, value in headers if _is_trace(name, value)}

    @property
    def id(self) -> str:
        """32 hexadecimal digits; "" where the request is part of no trace."""
        return found[1] if (found := self._parent()) else ""

    @property
    def is_sampled(self) -> bool:
        """Whether spans of the trace are exported: its caller, or the gate's sampler, has decided so."""
        return bool((found := self._parent()) and int(found[2], 16) & 1)

    def _parent(self) -> re.Match[str] | None:
        return _TRACEPARENT.fullmatch(self._carried.get("traceparent", ""))

    def headers(self) -> list[tuple[str, str]]:
        """The context, for other gates."""
        return list(self._carried.items())

    def metadata(self) -> list[tuple[str, str]]:
        """For Triton's gRPC; none where the trace is not sampled, since Triton exports whatever has a context.

        Triton (24.10, and its main branch of August 2026) takes the value for a C string (GrpcServerCarrier), reads on
        behind its end, and finds no context then: a few requests in a hundred have no spans of Triton's.
        """
        return [("traceparent", self._carried["traceparent"])] if self.is_sampled else []

    def begin(self, name: str) -> None:
        """Begin the gate's span, as of when the request came."""

    def current(self) -> AbstractContextManager[Any]:
        """While it is entered, spans that others begin in this context are below the gate's."""
        return nullcontext()

    def end(self, name: str, attributes: Mapping[str, Any], error: str = "") -> None:
        """End the span, which begins where it has not begun.

        Args:
            error: the code of an error of the server's; "" where it served, or refused rightly.
        """


class _Exported(Trace):
    """With a span."""

    def __init__(self, headers: Iterable[tuple[str, str]], tracing: Tracing) -> None:
        super().__init__(headers)
        self._tracing, self._began_ns = tracing, time.time_ns()
        self._span: Any = None

    def begin(self, name: str) -> None:
        api, propagator = self._tracing.api, self._tracing.propagator
        if self._span is None:
            self._span = self._tracing.tracer.start_span(
                name,
                context=propagator.extract(self._carried),
                kind=api.SpanKind.SERVER,
                start_time=self._began_ns,
            )
            self._carried = {}
            propagator.inject(self._carried, context=api.set_span_in_context(self._span))

    def current(self) -> AbstractContextManager[Any]:
        used: AbstractContextManager[Any] = self._tracing.api.use_span(
            self._span, record_exception=False, set_status_on_exception=False
        )
        return used

    def end(self, name: str, attributes: Mapping[str, Any], error: str = "") -> None:
        self.begin(name)
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if error:
            self._span.set_status(self._tracing.api.Status(self._tracing.api.StatusCode.ERROR, error))
        self._span.end()


class Tracing:
    """The process's exporter, in a thread of its own: a collector that is away costs its spans and delays nothing.

    Args:
        url: where OTLP over HTTP takes spans; what OpenTelemetry's own variables say where empty, else there are none.

    Raises:
        ValueError: the packages are missing.
    """

    def __init__(self, url: str) -> None:
        self.on = bool(url or any(os.environ.get(name) for name in ENDPOINTS))
        if not self.on:
            return
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ValueError(f"spans need {error.name}: pip install 'cutaway[traces]', or no endpoint") from None
        resource = Resource.create({SERVICE_NAME: "cutaway-gateway"}).merge(OTELResourceDetector().detect())
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # that waits for the collector
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url or None)))
        self.api: Any = trace
        self.tracer = self.provider.get_tracer("cutaway.gateway")
        self.propagator = TraceContextTextMapPropagator()

    def trace(self, headers: Iterable[tuple[str, str]]) -> Trace:
        """A request's, by its headers."""
        return _Exported(headers, self) if self.on else Trace(headers)

    def observers(self) -> list[Any]:
        """For the SDK's clients inside the gate."""
        if not self.on:
            return []
        from cutaway.observers import OpenTelemetry

        return [OpenTelemetry(self.provider)]

    async def aclose(self) -> None:
        """Send the last spans, within a bound: the exporter tries for longer."""
        if self.on:
            flushing = threading.Thread(target=self.provider.shutdown, name="spans", daemon=True)
            flushing.start()
            await asyncio.to_thread(flushing.join, FLUSH_S)


def _is_trace(name: str, value: str) -> bool:
    return name in HEADERS and len(value) <= _MAX_CHARS and value.isascii() and value.isprintable()
