"""One deadline for a whole HTTP exchange, and ending it from outside.

httpx bounds each wait on the network by itself, so a server that sends a byte now and then keeps a caller for ever.
Here every wait gets what is left of the exchange's time, looking the name up included; and cancelling shuts the socket
down under the thread that waits on it, which the server sees as a client that went away.
"""

from __future__ import annotations

import errno
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import httpcore
import httpx

from cutaway.addresses import is_address, look_up_apart
from cutaway.cancel import Cancel

WRITE_SLICE_BYTES = 64 * 1024
"""A write waits as often as the other side's buffer is full; each slice gets what is left anew."""

_current = threading.local()  # a synchronous exchange stays in the thread that began it


@contextmanager
def deadline(seconds: float, *cancels: Cancel | None) -> Iterator[None]:
    """Every wait of this thread on a :class:`DeadlineTransport` ends when the seconds are over, or is cancelled.

    What a cancelled wait raises is some network error; whoever gave `cancels` knows better what happened.
    """
    before = getattr(_current, "exchange", None)
    _current.exchange = exchange = _Exchange(time.monotonic() + seconds)
    registered = [cancel.on_cancel(exchange.abort) for cancel in cancels if cancel is not None]
    try:
        yield
    finally:
        for unregister in registered:
            unregister()
        exchange.waits(None)
        _current.exchange = before


class _Exchange:
    """The time that an exchange has, and how to end what it waits for."""

    def __init__(self, ends_at: float) -> None:
        self._ends_at = ends_at
        self._end_wait: Callable[[], object] | None = None
        self._aborted = False
        # Reentrant, since a signal handler may abort in the very thread that holds it.
        self._lock = threading.RLock()

    def left(self, timeout: float | None, timed_out: type[httpcore.TimeoutException]) -> float:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise timed_out("deadline exceeded")
        return left if timeout is None else min(left, timeout)

    def waits(self, end_wait: Callable[[], object] | None) -> None:
        """From now on `end_wait` ends what it waits for; None before a connection may become another exchange's."""
        with self._lock:
            self._end_wait = end_wait
            if end_wait is not None and self._aborted:
                end_wait()

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._end_wait is not None:
                self._end_wait()


def _shut_down(used: socket.socket) -> None:
    with suppress(OSError):
        # The plain socket's method: that of TLS would first take its state away from the thread that reads.
        socket.socket.shutdown(used, socket.SHUT_RDWR)


def _begin(
    used: socket.socket | None, timeout: float | None, timed_out: type[httpcore.TimeoutException]
) -> float | None:
    """Seconds for a wait that begins now on this socket."""
    exchange: _Exchange | None = getattr(_current, "exchange", None)
    if exchange is None:
        return timeout
    if used is not None:
        exchange.waits(partial(_shut_down, used))
    return exchange.left(timeout, timed_out)


class DeadlineTransport(httpx.BaseTransport):
    """An httpx transport over a pool of connections whose every wait respects :func:`deadline`; thread-safe.

    Raises httpcore's exceptions, which httpx passes on as they are.

    Args:
        max_connections: None sets no bound: there are as many as threads that use it at once.
        max_idle: so many wait for the next request,
        idle_s: for so many seconds.
        connect_s: connecting may take so long, TLS not included; None leaves it to the deadline.
        ssl_context: None trusts the public authorities.
    """

    def __init__(
        self,
        *,
        max_connections: int | None = 100,
        max_idle: int = 20,
        idle_s: float = 30.0,
        connect_s: float | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._backend = _Backend(connect_s)
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context or ssl.create_default_context(),
            max_connections=max_connections,
            max_keepalive_connections=max_idle,
            keepalive_expiry=idle_s,
            network_backend=self._backend,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        timeout = dict(request.extensions.get("timeout", {}))
        timeout["pool"] = _begin(None, timeout.get("pool"), httpcore.PoolTimeout)
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

    def abandon(self) -> None:
        """After a fork, in the child: let the parent's connections go without a word to the server."""
        self._backend.abandon()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        yield from self._response.iter_stream()

    def close(self) -> None:
        exchange: _Exchange | None = getattr(_current, "exchange", None)
        if exchange is not None:
            exchange.waits(None)
        self._response.close()


class _Stream(httpcore.NetworkStream):
    """A connection's socket.

    A socket that another thread waits on is shut down, and closed by that thread when it has woken: its number may be
    another connection's as soon as it is closed, and Linux' poll looks the number up again when it wakes.
    """

    def __init__(self, used: socket.socket, owner: _Backend) -> None:
        self._socket = used
        self._owner = owner
        self._lock = threading.RLock()  # a signal handler may close it in the very thread that holds it
        self._waiting = 0
        self._closed = False
        owner.streams.add(self)

    @contextmanager
    def _wait(self) -> Iterator[None]:
        self._begin_wait()
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                last = self._closed and not self._waiting
            if last:
                self._socket.close()

    def _begin_wait(self) -> None:
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the connection is closed")
            self._waiting += 1

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = _begin(self._socket, timeout, httpcore.ReadTimeout)
        try:
            with self._wait():
                self._socket.settimeout(left)
                received = self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        while view:
            left = _begin(self._socket, timeout, httpcore.WriteTimeout)
            try:
                with self._wait():
                    self._socket.settimeout(left)
                    view = view[self._socket.send(view[:WRITE_SLICE_BYTES]) :]
            except TimeoutError as error:
                raise httpcore.WriteTimeout(str(error)) from error
            except OSError as error:
                raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._owner.streams.discard(self)
        with self._lock:
            self._closed = True
            waiting = self._waiting > 0
        if waiting:
            _shut_down(self._socket)
        else:
            self._socket.close()

    def abandon(self) -> None:
        """In a forked child, where none of the threads waits that waited in the parent, whose connection it stays."""
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _begin(self._socket, timeout, httpcore.ConnectTimeout)
        try:
            self._socket.settimeout(left)
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except TimeoutError as error:
            self.close()
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            self.close()
            raise httpcore.ConnectError(str(error)) from error
        except BaseException:
            self.close()
            raise
        self._owner.streams.discard(self)  # its socket was taken over
        return _Stream(secured, self._owner)

    def get_extra_info(self, info: str) -> Any:
        if info == "socket":
            return self._socket
        if info == "is_readable":
            return _is_readable(self._socket)
        return None


class _Backend(httpcore.NetworkBackend):
    def __init__(self, connect_s: float | None) -> None:
        self._connect_s = connect_s
        self.streams: set[_Stream] = set()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        timeout = _earlier(timeout, self._connect_s)
        until = None if timeout is None else time.monotonic() + timeout
        failure: Exception = httpcore.ConnectError(f"the name {host!r} has no address")
        for address in _addresses(host, port, timeout):
            left = None if until is None else max(0.001, until - time.monotonic())
            try:
                return _Stream(_connected(address, port, left, local_address, socket_options or ()), self)
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def abandon(self) -> None:
        for stream in list(self.streams):
            stream.abandon()


def _addresses(host: str, port: int, timeout: float | None) -> list[str]:
    if is_address(host):
        return [host]
    left = _begin(None, timeout, httpcore.ConnectTimeout)
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()
    exchange: _Exchange | None = getattr(_current, "exchange", None)
    if exchange is not None:
        exchange.waits(lambda: answers.put(httpcore.ConnectError("cancelled")))
    try:
        look_up_apart(httpx.URL(f"http://{host}:{port}"), answers.put)
        answer = answers.get(timeout=left)
    except queue.Empty:
        raise httpcore.ConnectTimeout("the name server does not answer") from None
    except httpx.InvalidURL as error:
        raise httpcore.ConnectError(str(error)) from error
    if isinstance(answer, Exception):
        raise httpcore.ConnectError(str(answer)) from answer
    return answer


def _connected(
    address: str,
    port: int,
    timeout: float | None,
    local_address: str | None,
    options: Iterable[httpcore.SOCKET_OPTION],
) -> socket.socket:
    used = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        used.settimeout(_begin(used, timeout, httpcore.ConnectTimeout))
        if local_address is not None:
            used.bind((local_address, 0))
        used.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            used.setsockopt(*option)
        used.connect((address, port))
    except TimeoutError as error:
        used.close()
        raise httpcore.ConnectTimeout(str(error)) from error
    except OSError as error:
        used.close()
        raise httpcore.ConnectError(str(error)) from error
    except BaseException:
        used.close()
        raise
    return used


def _earlier(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _is_readable(used: socket.socket) -> bool:
    """Whether an idle connection has something to say, which is that its server has closed it."""
    if used.fileno() < 0:
        return True
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(used.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([used], [], [], 0)[0])
