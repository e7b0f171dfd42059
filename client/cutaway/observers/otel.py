"""OpenTelemetry: one span per call, which a Triton that traces goes on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cutaway import __version__
from cutaway.contract.errors import ServiceError
from cutaway.observe import ServedFacts, code_of
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
    """Makes a CLIENT span of every call, named ``cutaway.cut`` or as the operation is.

    Needs ``pip install 'cutaway[otel]'``, which is the API alone: spans go where your application's SDK sends them, and
    nowhere where it has none. The span's context goes along with the requests to your own servers (not to hosted
    models); a Triton that was started with ``--trace-config mode=opentelemetry`` hangs its own spans below.

    Attributes are ``server.address``, ``server.port`` and ``error.type`` as OpenTelemetry means them, and under
    ``cutaway.``: ``operation``, ``request_id``, ``subject``, ``output``, ``sent_bytes``, ``received_bytes``,
    ``provider``, ``tier``, ``requests``, ``from_cache``, ``people``, ``warnings`` and ``stage.<name>_ms``. Each tier
    that did not serve is an event ``cutaway.tried``.

    Args:
        tracer_provider: the global one where None.
        propagator: what the context is written with; W3C ``traceparent`` and ``tracestate`` where None.
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, propagator: TextMapPropagator | None = None
    ) -> None:
        self._tracer = trace.get_tracer("cutaway", __version__, tracer_provider)
        self._propagator = propagator or TraceContextTextMapPropagator()

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[_Span]:
        """See :meth:`cutaway.observe.Observer.call`."""
        with self._tracer.start_as_current_span(
            f"cutaway.{operation}",
            kind=trace.SpanKind.CLIENT,
            attributes={"cutaway.operation": operation, "cutaway.request_id": request_id},
            # OpenTelemetry would write messages and traces down, which may name a caller's file.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield _Span(span, self._propagator)
            except BaseException as error:
                _record(span, error)
                raise


class _Span:
    """See :class:`cutaway.observe.Observation`."""

    def __init__(self, span: trace.Span, propagator: TextMapPropagator) -> None:
        self._span = span
        self._propagator = propagator

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        # By the span and not by what is current: the request may be written in another thread.
        self._propagator.inject(carrier, context=trace.set_span_in_context(self._span))
        return carrier

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        self._span.set_attributes(
            {
                "cutaway.sent_bytes": n_bytes,
                "cutaway.subject": options.subject,
                "cutaway.output": options.output,
            }
        )

    def served(self, facts: ServedFacts) -> None:
        span = self._span
        for entry in facts.tried:
            span.add_event(
                "cutaway.tried",
                {
                    "cutaway.provider": entry.provider,
                    "cutaway.tier": entry.tier,
                    "error.type": entry.code,
                    "cutaway.elapsed_ms": entry.elapsed_ms,
                },
            )
        span.set_attributes(
            {
                "cutaway.provider": facts.provider,
                "cutaway.tier": facts.tier,
                "cutaway.requests": facts.requests,
                "cutaway.from_cache": facts.from_cache,
                "cutaway.received_bytes": facts.n_bytes,
                "cutaway.people": facts.people,
                "cutaway.warnings": facts.warnings,
                **{f"cutaway.stage.{stage}_ms": float(ms) for stage, ms in facts.stage_ms.items()},
            }
        )
        if facts.url:
            address = parse_address(facts.url)
            span.set_attribute("server.address", address.host.strip("[]"))
            span.set_attribute("server.port", address.port)


def _record(span: trace.Span, error: BaseException) -> None:
    code = code_of(error)
    kind = type(error)
    event = {"exception.type": f"{kind.__module__}.{kind.__qualname__}"}
    if isinstance(error, ServiceError):  # which tells of servers; others may tell of files
        event["exception.message"] = error.message
    span.add_event("exception", event)
    span.set_attribute("error.type", code)
    span.set_status(trace.Status(trace.StatusCode.ERROR, code))
