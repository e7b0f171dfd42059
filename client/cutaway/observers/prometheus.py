"""Prometheus: how many calls, how they ended, how long they took, and who served."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cutaway.contract import limits
from cutaway.observe import ServedFacts, code_of, requests_of

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError:
    raise ImportError("Prometheus metrics need prometheus-client: pip install 'cutaway[prometheus]'") from None

if TYPE_CHECKING:
    from cutaway.contract.options import CutOptions

OK = "OK"
NOBODY, CACHE = "none", "cache"


class Prometheus:
    """Counts calls in a Prometheus registry; needs ``pip install 'cutaway[prometheus]'``.

    ============================================  ==============================  ====================================
    metric                                        labels                          what
    ============================================  ==============================  ====================================
    ``cutaway_calls_total``                       operation, provider, code       calls that ended; code "OK", or one
                                                                                  of Cutaway's codes
    ``cutaway_call_seconds``                      operation, provider             histogram, 10 ms to a minute
    ``cutaway_calls_in_progress``                 operation                       calls under way
    ``cutaway_sent_bytes_total``                  operation                       pictures given to calls
    ``cutaway_received_bytes_total``              operation                       cut-outs that came back
    ``cutaway_fallbacks_total``                   operation, provider, tier       calls that a hosted tier served
    ``cutaway_retries_total``                     operation                       requests that were repeats, to your
                                                                                  own servers
    ============================================  ==============================  ====================================

    The provider is "triton", "huggingface", "replicate" or "space", "cache", or "none" where nobody served.

    Args:
        registry: the library's global one where None.

    Raises:
        ValueError: the registry holds these metrics already: make one and give it to all clients.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = REGISTRY if registry is None else registry
        try:
            self._calls = Counter(
                "cutaway_calls", "Calls that ended, by outcome.", ["operation", "provider", "code"], registry=registry
            )
            self._seconds = Histogram(
                "cutaway_call_seconds",
                "Seconds from a call to its end.",
                ["operation", "provider"],
                buckets=limits.METRIC_BUCKETS_S,
                registry=registry,
            )
            self._in_progress = Gauge(
                "cutaway_calls_in_progress",
                "Calls under way.",
                ["operation"],
                registry=registry,
                multiprocess_mode="livesum",
            )
            self._sent = Counter("cutaway_sent_bytes", "Bytes of the pictures.", ["operation"], registry=registry)
            self._received = Counter(
                "cutaway_received_bytes", "Bytes of the cut-outs.", ["operation"], registry=registry
            )
            self._fallbacks = Counter(
                "cutaway_fallbacks",
                "Calls that a hosted tier served.",
                ["operation", "provider", "tier"],
                registry=registry,
            )
            self._retries = Counter(
                "cutaway_retries", "Requests to own servers that were repeats.", ["operation"], registry=registry
            )
        except ValueError as error:
            raise ValueError(
                "this registry has Cutaway's metrics already: make one Prometheus() and give it to all clients"
            ) from error

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[_Counted]:  # noqa: ARG002
        """See :meth:`cutaway.observe.Observer.call`."""
        counted = _Counted()
        started = time.monotonic()
        code = OK
        self._in_progress.labels(operation).inc()
        try:
            yield counted
        except BaseException as error:
            code = code_of(error)
            counted.requests = requests_of(error)
            raise
        finally:
            self._in_progress.labels(operation).dec()
            self._calls.labels(operation, counted.provider, code).inc()
            self._seconds.labels(operation, counted.provider).observe(time.monotonic() - started)
            self._sent.labels(operation).inc(counted.sent_bytes)
            self._received.labels(operation).inc(counted.received_bytes)
            if counted.tier > 1:
                self._fallbacks.labels(operation, counted.provider, str(counted.tier)).inc()
            self._retries.labels(operation).inc(max(0, counted.requests - 1))


class _Counted:
    """See :class:`cutaway.observe.Observation`."""

    def __init__(self) -> None:
        self.provider = NOBODY
        self.tier = 0
        self.requests = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def headers(self) -> Mapping[str, str]:
        return {}

    def sent(self, n_bytes: int, options: CutOptions) -> None:  # noqa: ARG002
        self.sent_bytes = n_bytes

    def served(self, facts: ServedFacts) -> None:
        self.provider = CACHE if facts.from_cache else facts.provider
        self.tier = facts.tier
        self.received_bytes = facts.n_bytes
        if facts.tier == 1:  # what hosted models are asked are polls, mostly
            self.requests = facts.requests
