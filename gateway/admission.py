"""Which requests are let in: so many at once, from one caller, and so many bytes of them; further ones are shed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import unquote

from cutaway.contract.errors import Overloaded, ServerUnavailable

from gateway.metrics import Metrics
from gateway.settings import Settings

PATIENCE_S = 5.0
"""A request that arrives for longer gives way where there is no room for others: it may be sent slowly on purpose."""


def caller_named(address: str) -> str:
    """An address, as Triton's pipelines are told of it; of IPv6 the network that one subscriber has."""
    kind, _, text = address.partition(":")
    text = unquote(text).strip("[]") if kind in ("ipv4", "ipv6") else address  # as gRPC has it, or as HTTP has it
    try:
        parsed = ip_address(text)
    except ValueError:
        return f"ip:{text[:60]}"
    if isinstance(parsed, IPv6Address):
        return f"ip:{parsed.ipv4_mapped or ip_network((parsed, 64), strict=False)}"
    return f"ip:{parsed}"


class Place:
    """One request: the bytes that it holds in memory, and whether it has begun, as which it counts."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self._admission, self._caller = admission, caller
        self.caller = caller_named(caller)
        self._begun = False
        self.held_bytes = 0

    def hold(self, size: int, *, shed: bool = True) -> None:
        """Count further bytes.

        Args:
            shed: raise Overloaded where there is no room for them; an answer that is there already is not shed.
        """
        admission = self._admission
        if shed and admission.held_bytes + size > admission.settings.max_bytes:
            admission.make_room()
            raise admission.shed("bytes", "The server holds as many bytes of requests as it can.")
        self.held_bytes += size
        admission.held_bytes += size
        admission.metrics.bytes_in_flight.set(admission.held_bytes)

    def begin(self) -> None:
        """Take a place among the requests in flight, now that the request is there; Overloaded where there is none."""
        admission, places = self._admission, self._admission.places
        if places.total() >= admission.settings.max_requests:
            raise admission.shed("requests", "The server has as many requests as it can serve.")
        if places[self._caller] >= admission.settings.max_requests_per_caller:
            raise admission.shed("caller", "This address has as many requests here as one may have.")
        places[self._caller] += 1
        self._begun = True
        admission.metrics.in_flight.set(places.total())

    def release(self) -> None:
        places = self._admission.places
        if self._begun:
            places[self._caller] -= 1
            if not places[self._caller]:
                del places[self._caller]
            self._admission.metrics.in_flight.set(places.total())
        self.hold(-self.held_bytes, shed=False)


class Admission:
    """One for all protocols of the process.

    Attributes:
        places: of requests in flight, by their callers' addresses.
        unanswered: how many requests were let in, those included whose bodies arrive or that wait between pictures.
        draining: whether no further request is let in.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.places: Counter[str] = Counter()
        self.held_bytes = 0
        self.draining = False
        self.unanswered = 0
        self._arriving: dict[asyncio.Timeout, float] = {}
        self._messages = asyncio.Semaphore(settings.max_messages)

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request from its headers to its answer; ServerUnavailable while the gate ends."""
        if self.draining:
            raise ServerUnavailable("The server is shutting down.")
        self.unanswered += 1
        try:
            yield
        finally:
            self.unanswered -= 1

    @contextmanager
    def place(self, caller: str, *, within: bool = False) -> Iterator[Place]:
        """A request of a caller, by address; ServerUnavailable while the gate ends.

        Args:
            within: it is a part of a request that was let in.
        """
        with nullcontext() if within else self.request():
            place = Place(self, caller)
            try:
                yield place
            finally:
                place.release()

    @asynccontextmanager
    async def arriving(self) -> AsyncIterator[None]:
        """While a request's body arrives; TimeoutError where it takes too long, or others need the room."""
        async with asyncio.timeout(self.settings.body_timeout_s) as limit:
            self._arriving[limit] = asyncio.get_running_loop().time()
            try:
                yield
            finally:
                del self._arriving[limit]

    @asynccontextmanager
    async def arriving_message(self) -> AsyncIterator[None]:
        """The same for a gRPC message, whose bytes cannot be counted before all of them are in memory; so there are
        few at a time."""
        if self._messages.locked():
            self.make_room()
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                await self._messages.acquire()
        except TimeoutError:
            raise self.shed("messages", "The server receives as many requests as it can.") from None
        try:
            async with self.arriving():
                yield
        finally:
            self._messages.release()

    def make_room(self) -> None:
        """Give up what arrives too slowly."""
        now = asyncio.get_running_loop().time()
        for limit, since in self._arriving.items():
            if now - since > PATIENCE_S:
                limit.reschedule(now)

    def shed(self, bound: str, message: str) -> Overloaded:
        self.metrics.shed.labels(bound).inc()
        return Overloaded(message)
