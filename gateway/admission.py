"""Which requests are let in: so many at once, from one caller, and so many bytes of them; further ones are shed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from cutaway.contract.errors import Overloaded, ServerUnavailable

from gateway.metrics import Metrics
from gateway.settings import Settings


class Place:
    """The place of one request, and the bytes that it holds in memory."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.held_bytes = 0

    def hold(self, size: int, *, shed: bool = True) -> None:
        """Count further bytes.

        Args:
            shed: raise Overloaded where there is no room for them; an answer that is there already is not shed.
        """
        admission = self._admission
        if shed and admission.held_bytes + size > admission.settings.max_bytes:
            raise admission.shed("bytes", "The server holds as many bytes of requests as it can.")
        self.held_bytes += size
        admission.held_bytes += size
        admission.metrics.bytes_in_flight.set(admission.held_bytes)


class Admission:
    """One for all protocols of the process."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.held_bytes = 0
        self.draining = False
        self._places: Counter[str] = Counter()

    @property
    def in_flight(self) -> int:
        return self._places.total()

    @contextmanager
    def place(self, caller: str) -> Iterator[Place]:
        """A place for a request of a caller, by address.

        Raises:
            Overloaded: there is none.
            ServerUnavailable: the gate is ending.
        """
        if self.draining:
            raise ServerUnavailable("The server is shutting down.")
        if self.in_flight >= self.settings.max_requests:
            raise self.shed("requests", "The server has as many requests as it can serve.")
        if self._places[caller] >= self.settings.max_requests_per_caller:
            raise self.shed("caller", "This address has as many requests here as one may have.")
        self._places[caller] += 1
        self.metrics.in_flight.inc()
        place = Place(self)
        try:
            yield place
        finally:
            self._places[caller] -= 1
            if not self._places[caller]:
                del self._places[caller]
            self.metrics.in_flight.dec()
            place.hold(-place.held_bytes, shed=False)

    def shed(self, bound: str, message: str) -> Overloaded:
        self.metrics.shed.labels(bound).inc()
        return Overloaded(message)
