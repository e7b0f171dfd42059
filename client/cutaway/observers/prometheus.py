"""Prometheus: number, outcome, duration and provider of calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cutaway.contract.limits import METRIC_BUCKETS_S
from cutaway.observe import Observation, ServedFacts, code_of, requests_of

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ImportError:
    raise ImportError("Prometheus metrics need prometheus-client: pip install 'cutaway[prometheus]'") from None

if TYPE_CHECKING:
    from cutaway.contract.options import CutOptions


class Prometheus:
    """Counts calls in a Prometheus registry; needs ``pip install 'cutaway[prometheus]'``.

    The label `code` is "OK" or an error's code; `provider` is "triton", "huggingface", "replicate", "space", "cache",
    or "none" where nobody served.

    Args:
        registry: the library's global one where None.

    Raises:
        ValueError: the registry has these metrics already: make one and give it to all clients.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = REGISTRY if registry is None else registry

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"cutaway_{name}", help_text, ["operation", *labels], registry=registry)

        try:
            self._calls = counter("calls", "Calls that ended, by outcome.", "provider", "code")
            self._sent = counter("sent_bytes", "Bytes of the pictures.")
            self._received = counter("received_bytes", "Bytes of the cut-outs.")
            self._fallbacks = counter("fallbacks", "Calls that a hosted tier served.", "provider", "tier")
            self._retries = counter("retries", "Requests to own servers that were retries.")
            self._seconds = Histogram(
                "cutaway_call_seconds",
                "Seconds from a call to its end.",
                ["operation", "provider"],
                buckets=METRIC_BUCKETS_S,
                registry=registry,
            )
            self._in_progress = Gauge(
                "cutaway_calls_in_progress",
                "Calls in progress.",
                ["operation"],
                registry=registry,
                multiprocess_mode="livesum",
            )
        except ValueError as error:
            raise ValueError(
                "this registry has Cutaway's metrics already: make one Prometheus() and give it to all clients"
            ) from error

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
