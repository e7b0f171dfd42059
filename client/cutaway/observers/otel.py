"""OpenTelemetry: one span per call, the parent of a tracing Triton's spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cutaway import __version__
from cutaway.contract.errors import ServiceError
from cutaway.observe import Observation, ServedFacts, code_of
from cutaway.transports.base import parse_address

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    raise ImportError("OpenTelemetry spans need opentelemetry-api: pip install 'cutaway[otel]'") from None

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

    from cutaway.contract.options import CutOptions


class OpenTelemetry:
    """A CLIENT span ``cutaway.<operation>`` of every call; needs ``pip install 'cutaway[otel]'``, the API alone.

    The span's context is sent to your own servers, not to hosted models; a Triton started with
    ``--trace-config mode=opentelemetry`` continues it. Attributes are OpenTelemetry's ``server.address``,
    ``server.port`` and ``error.type``, and ``cutaway.*``; each tier that failed is an event ``cutaway.tried``.

    Args:
        tracer_provider: the global one where None.
        propagator: writes the context; W3C ``traceparent`` and ``tracestate`` where None.
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, propagator: TextMapPropagator | None = None
    ) -> None:
        self._tracer = trace.get_tracer("cutaway", __version__, tracer_provider)
        self._propagator = propagator or TraceContextTextMapPropagator()

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[Observation]:
        """See :meth:`cutaway.observe.Observer.call`."""
        with self._tracer.start_as_current_span(
            f"cutaway.{operation}",
            kind=trace.SpanKind.CLIENT,
            attributes={"cutaway.operation": operation, "cutaway.request_id": request_id},
            # OpenTelemetry's own record holds messages and traces, which may name a caller's file.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _Span(span, self._propagator)
            except BaseException as error:
                event = {"exception.type": f"{type(error).__module__}.{type(error).__qualname__}"}
                if isinstance(error, ServiceError):  # about servers; other messages may name files
                    event["exception.message"] = error.message
                span.add_event("exception", event)
                span.set_attribute("error.type", code_of(error))
                span.set_status(trace.Status(trace.StatusCode.ERROR, code_of(error)))
                raise


class _Span(Observation):
    def __init__(self, span: trace.Span, propagator: TextMapPropagator) -> None:
        self._span = span
        self._propagator = propagator

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        # By the span, because another span is current in the thread that sends.
        self._propagator.inject(carrier, context=trace.set_span_in_context(self._span))
        return carrier

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        self._set(sent_bytes=n_bytes, subject=options.subject, output=options.output)

    def served(self, facts: ServedFacts) -> None:
        for entry in facts.tried:
            tier = {"cutaway.provider": entry.provider, "cutaway.tier": entry.tier}
            self._span.add_event(
                "cutaway.tried", {**tier, "error.type": entry.code, "cutaway.elapsed_ms": entry.elapsed_ms}
            )
        self._set(provider=facts.provider, tier=facts.tier, requests=facts.requests, from_cache=facts.from_cache)
        self._set(received_bytes=facts.n_bytes, people=facts.people, warnings=facts.warnings)
        self._set(**{f"stage.{stage}_ms": float(ms) for stage, ms in facts.stage_ms.items()})
        if facts.url:
            address = parse_address(facts.url)
            self._span.set_attribute("server.address", address.host.strip("[]"))
            self._span.set_attribute("server.port", address.port)

    def _set(self, **values: str | float | tuple[str, ...]) -> None:
        self._span.set_attributes({f"cutaway.{name}": value for name, value in values.items()})
