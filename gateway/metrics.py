"""What comes out of requests, for Prometheus, and Triton's own metrics with it."""

from __future__ import annotations

from cutaway.contract.errors import (
    GpuMemoryExhausted,
    InferenceError,
    Overloaded,
    ProcessingTimeout,
    ServerUnavailable,
)
from cutaway.contract.limits import METRIC_BUCKETS_S
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.request import MODELS

OWN = b"cutaway_gateway_"
"""What is in a gate's metrics, and not in Triton's."""

SHED = (
    *("requests", "caller", "bytes", "messages"),  # of the gate: admission.py
    *("per_minute", "per_second", "jobs", "storage", "gpu_memory"),  # of the HTTP service
)
CLOSED = ("connections", "headers", "framing", "header", "linger", "answer")
CALLED = {"http": ("", *MODELS), "grpc": ("", *MODELS), "service": ("cut", "detect", "stream_pipeline")}
"""What is called by each protocol; "" where a request is refused before it says so."""
CODES = (
    "OK",
    *(kind.code for kind in (InferenceError, ProcessingTimeout, GpuMemoryExhausted, Overloaded, ServerUnavailable)),
)
"""The outcomes for which callers are not to blame."""


class Metrics:
    """The gate's metrics. `model` is "" where none was called, and `code` "OK" or what an error says.

    Attributes:
        registry: for the metrics of libraries.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        of_call = ("protocol", "model")
        self.requests = Counter(
            "cutaway_gateway_requests", "Inference requests by outcome.", (*of_call, "code"), registry=registry
        )
        self.request_bytes = Counter(
            "cutaway_gateway_request_bytes", "Bytes of requests' bodies.", of_call, registry=registry
        )
        self.response_bytes = Counter("cutaway_gateway_response_bytes", "Bytes of answers.", of_call, registry=registry)
        self.seconds = Histogram(
            "cutaway_gateway_request_seconds",
            "From a request's headers to its answer's last byte.",
            of_call,
            buckets=METRIC_BUCKETS_S,
            registry=registry,
        )
        self.in_flight = Gauge("cutaway_gateway_requests_in_flight", "Requests being served.", registry=registry)
        self.bytes_in_flight = Gauge("cutaway_gateway_bytes_in_flight", "Their bytes in memory.", registry=registry)
        self.shed = Counter("cutaway_gateway_shed", "Requests that were shed, by bound.", ("bound",), registry=registry)
        self.connections = Gauge("cutaway_gateway_connections", "Open HTTP connections.", registry=registry)
        self.closed = Counter(
            "cutaway_gateway_connections_closed", "HTTP connections closed by a bound.", ("bound",), registry=registry
        )
        self.jobs = Gauge("cutaway_jobs", "Unfinished jobs that this gate took.", ("status",), registry=registry)
        self.jobs_finished = Counter(
            "cutaway_jobs_finished", "Jobs that this gate worked on.", ("status",), registry=registry
        )
        self.ready = Gauge(
            "cutaway_gateway_triton_reachable", "Whether the last call reached Triton.", registry=registry
        )
        # At 0, since Prometheus sees no increase where a counter appears with 1: first errors would be lost.
        for protocol, models in CALLED.items():
            for model in models:
                for code in CODES:
                    self.requests.labels(protocol, model, code)
        for counter, values in (
            (self.shed, SHED),
            (self.closed, CLOSED),
            (self.jobs_finished, ("completed", "failed")),
        ):
            for value in values:
                counter.labels(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
