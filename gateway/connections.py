"""HTTP connections within bounds: uvicorn's, which bounds neither headers, nor chunks, nor silence by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.metrics import Metrics
from gateway.settings import Settings

SWEEP_INTERVAL_S = 0.5
LINGER_S = 5.0
"""How long what a refused caller still sends is read and dropped: one that is cut off does not see its answer."""
MAX_PIPELINED = 8


class Connection(HttpToolsProtocol):  # type: ignore[misc]
    """A connection; what it waits for, and since when, is swept by :func:`sweep` instead of a timer for each event."""

    def __init__(self, settings: Settings, metrics: Metrics, **given: Any) -> None:
        super().__init__(**given)
        self._settings, self._metrics = settings, metrics
        self._headers_due = True
        self._body_due = False
        self._since = time.monotonic()
        self._stuck_since: float | None = None
        self._received = self._header_bytes = self._body_bytes = 0

    @property
    def idle_since(self) -> float | None:
        """Since when no request is being served; None while one is."""
        return self._since if self.cycle is None or self.cycle.response_complete else None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._metrics.connections.inc()
        if len(self.connections) > self._settings.max_connections:
            idle = [each for each in self.connections if each.idle_since is not None and each is not self]
            oldest = min(idle, key=lambda each: each.idle_since, default=self)
            oldest.close("connections")

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._metrics.connections.dec()

    def close(self, bound: str) -> None:
        """Close it at once, because of a bound."""
        self._metrics.closed.labels(bound).inc()
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._headers_due and not self._body_due:  # the first bytes of a further request
            self._headers_due, self._since = True, time.monotonic()
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._headers_due and self._received > self._settings.max_header_bytes:
            self.close("headers")
        elif self._received - self._body_bytes > self._settings.max_framing_bytes + self._settings.max_header_bytes:
            self.close("framing")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._headers_due, self._body_due, self._since = False, True, time.monotonic()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests at once")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._body_due, self._since = False, time.monotonic()
        self._received = self._body_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()

    def _count(self, size: int) -> None:
        """Count bytes of headers, and of trailers; an error here is answered with status 400."""
        self._header_bytes += size
        if self._header_bytes > self._settings.max_header_bytes:
            raise ValueError("too long headers")

    def sweep(self, now: float) -> None:
        """Close it where it has been silent, or has not taken its answer, for too long."""
        waited_s = now - self._since
        if self.transport.get_write_buffer_size() == 0:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        if self._stuck_since is not None and now - self._stuck_since > self._settings.answer_timeout_s:
            self.close("answer")
        elif self._headers_due and waited_s > self._settings.header_timeout_s:
            self.close("header")
        elif self._body_due and self.cycle is not None and self.cycle.response_complete and waited_s > LINGER_S:
            self.close("linger")


async def sweep(connections: Iterable[Connection]) -> None:
    """Sweep a server's connections until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_INTERVAL_S)
        now = time.monotonic()
        for connection in list(connections):
            connection.sweep(now)
