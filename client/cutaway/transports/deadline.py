"""One deadline for a whole HTTP exchange.

httpx bounds each wait on the network by itself, so a server that sends a byte now and then keeps a caller for ever.
Here every wait gets what is left of the exchange's time.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

WRITE_SLICE_BYTES = 64 * 1024
"""A write waits as often as the other side's buffer is full; each slice gets what is left anew."""

_current = threading.local()  # a synchronous exchange stays in the thread that began it


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Every wait of this thread on a :class:`DeadlineTransport` ends when the seconds are over."""
    before = getattr(_current, "ends_at", None)
    _current.ends_at = time.monotonic() + seconds
    try:
        yield
    finally:
        _current.ends_at = before


def _left(timeout: float | None, timed_out: type[httpcore.TimeoutException]) -> float | None:
    ends_at = getattr(_current, "ends_at", None)
    if ends_at is None:
        return timeout
    left = float(ends_at) - time.monotonic()
    if left <= 0:
        raise timed_out("deadline exceeded")
    return left if timeout is None else min(left, timeout)


class DeadlineTransport(httpx.BaseTransport):
    """An httpx transport over a pool of connections whose every wait respects :func:`deadline`; thread-safe.

    Raises httpcore's exceptions, which httpx passes on as they are.
    """

    def __init__(self, *, max_connections: int = 100, max_idle: int = 20, idle_s: float = 30.0) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=max_connections,
            max_keepalive_connections=max_idle,
            keepalive_expiry=idle_s,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        timeout = dict(request.extensions.get("timeout", {}))
        timeout["pool"] = _left(timeout.get("pool"), httpcore.PoolTimeout)
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=dict(request.extensions) | {"timeout": timeout},
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        for start in range(0, len(view), WRITE_SLICE_BYTES):
            part = bytes(view[start : start + WRITE_SLICE_BYTES])
            self._stream.write(part, _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_tcp(host, port, left, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)
