"""What comes out of requests, for Prometheus, and Triton's own metrics with it."""

from __future__ import annotations

from cutaway.contract.limits import METRIC_BUCKETS_S
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The gate's metrics. `model` is "" where none was called, and `code` "OK" or what an error says."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
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
        self.ready = Gauge(
            "cutaway_gateway_triton_reachable", "Whether the last call reached Triton.", registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)
