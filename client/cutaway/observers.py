"""Observers for OpenTelemetry and Prometheus: ``Client(url, observers=[OpenTelemetry(), Prometheus()])``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cutaway import __version__
from cutaway.contract.errors import CutawayError
from cutaway.contract.limits import METRIC_BUCKETS_S
from cutaway.contract.options import CutOptions
from cutaway.observe import ServedFacts, Unobserved, code_of
from cutaway.transports.base import parse_address

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry, Counter


class _Record(Unobserved):
    """The events of a call; `facts` has tier 0 where nobody served."""

    def __init__(self) -> None:
        self.facts, self.sent_bytes, self.options = ServedFacts("none", tier=0), 0, dict[str, str]()
        self.carried: dict[str, str] = {}

    def headers(self) -> Mapping[str, str]:
        return self.carried

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        self.sent_bytes, self.options = n_bytes, {"subject": options.subject, "output": options.output}

    def served(self, facts: ServedFacts) -> None:
        self.facts = facts


class OpenTelemetry:
    """A CLIENT span ``cutaway.<operation>`` of every call; needs ``pip install 'cutaway[otel]'``, the API alone.

    The span's context is sent to your own servers, not to hosted models. Attributes are ``server.address``,
    ``server.port``, ``error.type``, and ``cutaway.*``; each tier that failed is an event ``cutaway.tried``.
    The tracer provider is the global one where None.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise ImportError("OpenTelemetry spans need opentelemetry-api: pip install 'cutaway[otel]'") from None
        self._trace, self._tracer = trace, trace.get_tracer("cutaway", __version__, tracer_provider)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[Unobserved]:
        """See :meth:`cutaway.observe.Observer.call`."""
        trace, record = self._trace, _Record()
        with self._tracer.start_as_current_span(
            f"cutaway.{operation}",
            kind=trace.SpanKind.CLIENT,
            attributes={"cutaway.operation": operation, "cutaway.request_id": request_id},
            # OpenTelemetry's own record holds messages and traces, which may name a caller's file.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._propagator.inject(record.carried, context=trace.set_span_in_context(span))
            try:
                yield record
            except BaseException as error:
                span.set_attribute("error.type", code_of(error))
                span.set_status(trace.Status(trace.StatusCode.ERROR, code_of(error)))
                raise
            finally:
                facts = record.facts
                values: dict[str, Any] = record.options and {"sent_bytes": record.sent_bytes, **record.options}
                if facts.tier:
                    names = ("provider", "tier", "requests", "from_cache", "people", "warnings")
                    values |= {name: getattr(facts, name) for name in names} | {"received_bytes": facts.n_bytes}
                    values |= {f"stage.{stage}_ms": float(ms) for stage, ms in facts.stage_ms.items()}
                span.set_attributes({f"cutaway.{name}": value for name, value in values.items()})
                for tried in facts.tried:
                    event = {f"cutaway.{name}": getattr(tried, name) for name in ("provider", "tier", "elapsed_ms")}
                    span.add_event("cutaway.tried", {"error.type": tried.code, **event})
                if facts.url:
                    address = parse_address(facts.url)
                    span.set_attributes({"server.address": address.host.strip("[]"), "server.port": address.port})


class Prometheus:
    """Counts calls in a Prometheus registry, the global one where None; ``pip install 'cutaway[prometheus]'``.

    The label `code` is "OK" or an error's code; `provider` is "triton", "huggingface", "replicate", "space", "cache",
    or "none" where nobody served.

    Raises:
        ValueError: the registry has these metrics already: make one Prometheus() and give it to all clients.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise ImportError("Prometheus metrics need prometheus-client: pip install 'cutaway[prometheus]'") from None
        registry = prometheus.REGISTRY if registry is None else registry

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return prometheus.Counter(f"cutaway_{name}", help_text, ["operation", *labels], registry=registry)

        self._calls = counter("calls", "Calls that ended, by outcome.", "provider", "code")
        self._sent = counter("sent_bytes", "Bytes of the pictures.")
        self._received = counter("received_bytes", "Bytes of the cut-outs.")
        self._fallbacks = counter("fallbacks", "Calls that a hosted tier served.", "provider", "tier")
        self._retries = counter("retries", "Requests to own servers that were retries.")
        what = ("cutaway_call_seconds", "Seconds from a call to its end.", ["operation", "provider"])
        self._seconds = prometheus.Histogram(*what, buckets=METRIC_BUCKETS_S, registry=registry)
        what = ("cutaway_calls_in_progress", "Calls in progress.", ["operation"])
        self._in_progress = prometheus.Gauge(*what, multiprocess_mode="livesum", registry=registry)

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[Unobserved]:  # noqa: ARG002
        """See :meth:`cutaway.observe.Observer.call`."""
        record, started, code, requests = _Record(), time.monotonic(), "OK", 0
        with self._in_progress.labels(operation).track_inprogress():
            try:
                yield record
            except BaseException as error:
                code = code_of(error)
                requests = error.details.get("requests", 0) if isinstance(error, CutawayError) else 0
                raise
            finally:
                facts = record.facts
                provider = "cache" if facts.from_cache else facts.provider
                requests = facts.requests if facts.tier == 1 else requests  # to hosted models most are polls
                if facts.tier > 1:
                    self._fallbacks.labels(operation, provider, str(facts.tier)).inc()
                self._calls.labels(operation, provider, code).inc()
                self._sent.labels(operation).inc(record.sent_bytes)
                self._received.labels(operation).inc(facts.n_bytes)
                self._retries.labels(operation).inc(max(0, requests - 1))
                self._seconds.labels(operation, provider).observe(time.monotonic() - started)
