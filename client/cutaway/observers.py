"""Observers for OpenTelemetry and Prometheus: ``Client(url, observers=[OpenTelemetry(), Prometheus()])``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cutaway import __version__
from cutaway.contract.errors import ServiceError
from cutaway.contract.limits import METRIC_BUCKETS_S
from cutaway.observe import Observation, ServedFacts, code_of, requests_of
from cutaway.transports.base import parse_address

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span, TracerProvider
    from prometheus_client import CollectorRegistry, Counter

    from cutaway.contract.options import CutOptions


class OpenTelemetry:
    """A CLIENT span ``cutaway.<operation>`` of every call; needs ``pip install 'cutaway[otel]'``, the API alone.

    The span's context is sent to your own servers, not to hosted models; a Triton started with
    ``--trace-config mode=opentelemetry`` continues it. Attributes are OpenTelemetry's ``server.address``,
    ``server.port`` and ``error.type``, and ``cutaway.*``; each tier that failed is an event ``cutaway.tried``.

    Args:
        tracer_provider: the global one where None.
        propagator: writes the context; W3C ``traceparent`` and ``tracestate`` where None.

    Raises:
        ImportError: opentelemetry-api is not installed.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, propagator: TextMapPropagator | None = None
    ) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ImportError("OpenTelemetry spans need opentelemetry-api: pip install 'cutaway[otel]'") from None
        self._trace = trace
        self._tracer = trace.get_tracer("cutaway", __version__, tracer_provider)
        self._propagator = propagator or TraceContextTextMapPropagator()

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[Observation]:
        """See :meth:`cutaway.observe.Observer.call`."""
        trace = self._trace
        with self._tracer.start_as_current_span(
            f"cutaway.{operation}",
            kind=trace.SpanKind.CLIENT,
            attributes={"cutaway.operation": operation, "cutaway.request_id": request_id},
            # OpenTelemetry's own record holds messages and traces, which may name a caller's file.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            headers: dict[str, str] = {}
            self._propagator.inject(headers, context=trace.set_span_in_context(span))
            try:
                yield _Span(span, headers)
            except BaseException as error:
                event = {"exception.type": f"{type(error).__module__}.{type(error).__qualname__}"}
                if isinstance(error, ServiceError):  # about servers; other messages may name files
                    event["exception.message"] = error.message
                span.add_event("exception", event)
                span.set_attribute("error.type", code_of(error))
                span.set_status(trace.Status(trace.StatusCode.ERROR, code_of(error)))
                raise


class _Span(Observation):
    def __init__(self, span: Span, headers: Mapping[str, str]) -> None:
        self._span = span
        self._headers = headers

    def headers(self) -> Mapping[str, str]:
        return self._headers

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        self._set(sent_bytes=n_bytes, subject=options.subject, output=options.output)

    def served(self, facts: ServedFacts) -> None:
        for entry in facts.tried:
            event: dict[str, Any] = {"cutaway.provider": entry.provider, "cutaway.tier": entry.tier}
            event |= {"error.type": entry.code, "cutaway.elapsed_ms": entry.elapsed_ms}
            self._span.add_event("cutaway.tried", event)
        self._set(provider=facts.provider, tier=facts.tier, requests=facts.requests, from_cache=facts.from_cache)
        self._set(received_bytes=facts.n_bytes, people=facts.people, warnings=facts.warnings)
        self._set(**{f"stage.{stage}_ms": float(ms) for stage, ms in facts.stage_ms.items()})
        if facts.url:
            address = parse_address(facts.url)
            self._span.set_attributes({"server.address": address.host.strip("[]"), "server.port": address.port})

    def _set(self, **values: str | float | tuple[str, ...]) -> None:
        self._span.set_attributes({f"cutaway.{name}": value for name, value in values.items()})


class Prometheus:
    """Counts calls in a Prometheus registry; needs ``pip install 'cutaway[prometheus]'``.

    The label `code` is "OK" or an error's code; `provider` is "triton", "huggingface", "replicate", "space", "cache",
    or "none" where nobody served.

    Args:
        registry: the library's global one where None.

    Raises:
        ImportError: prometheus-client is not installed.
        ValueError: the registry has these metrics already: make one and give it to all clients.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise ImportError("Prometheus metrics need prometheus-client: pip install 'cutaway[prometheus]'") from None
        to: dict[str, Any] = {"registry": prometheus.REGISTRY if registry is None else registry}

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return prometheus.Counter(f"cutaway_{name}", help_text, ["operation", *labels], **to)

        try:
            self._calls = counter("calls", "Calls that ended, by outcome.", "provider", "code")
            self._sent = counter("sent_bytes", "Bytes of the pictures.")
            self._received = counter("received_bytes", "Bytes of the cut-outs.")
            self._fallbacks = counter("fallbacks", "Calls that a hosted tier served.", "provider", "tier")
            self._retries = counter("retries", "Requests to own servers that were retries.")
            name, what, labels = "cutaway_call_seconds", "Seconds from a call to its end.", ["operation", "provider"]
            self._seconds = prometheus.Histogram(name, what, labels, buckets=METRIC_BUCKETS_S, **to)
            name, what, labels = "cutaway_calls_in_progress", "Calls in progress.", ["operation"]
            self._in_progress = prometheus.Gauge(name, what, labels, multiprocess_mode="livesum", **to)
        except ValueError as error:
            message = "this registry has Cutaway's metrics already: make one Prometheus() and give it to all clients"
            raise ValueError(message) from error

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[Observation]:  # noqa: ARG002
        """See :meth:`cutaway.observe.Observer.call`."""
        counts, started, code = _Counts(), time.monotonic(), "OK"
        with self._in_progress.labels(operation).track_inprogress():
            try:
                yield counts
            except BaseException as error:
                code, counts.requests = code_of(error), requests_of(error)
                raise
            finally:
                self._calls.labels(operation, counts.provider, code).inc()
                self._seconds.labels(operation, counts.provider).observe(time.monotonic() - started)
                self._sent.labels(operation).inc(counts.sent_bytes)
                self._received.labels(operation).inc(counts.received_bytes)
                if counts.tier > 1:
                    self._fallbacks.labels(operation, counts.provider, str(counts.tier)).inc()
                self._retries.labels(operation).inc(max(0, counts.requests - 1))


class _Counts(Observation):
    provider = "none"
    tier = requests = sent_bytes = received_bytes = 0

    def sent(self, n_bytes: int, options: CutOptions) -> None:  # noqa: ARG002
        self.sent_bytes = n_bytes

    def served(self, facts: ServedFacts) -> None:
        self.provider = "cache" if facts.from_cache else facts.provider
        self.tier, self.received_bytes = facts.tier, facts.n_bytes
        if facts.tier == 1:  # requests to hosted models are mostly polls
            self.requests = facts.requests
