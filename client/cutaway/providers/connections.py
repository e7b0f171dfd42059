"""A provider's connections: shared by its calls, left alone by a fork, and closed when nobody uses them; and requests
whose address httpx logs without its query.
"""

from __future__ import annotations

import os
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import overload

import httpx

from cutaway.providers.guard import GuardedTransport

WHOLE_ADDRESS = "cutaway.url"
"""The extension of an httpx request that says where it goes: its own URL is what httpx logs, at INFO."""

_making_tls = threading.RLock()

if hasattr(os, "register_at_fork"):
    # OpenSSL's own locks stay locked for ever in a child that is forked while a context is being made.
    os.register_at_fork(
        before=_making_tls.acquire, after_in_parent=_making_tls.release, after_in_child=_making_tls.release
    )


def tls_context(*, verifying: bool) -> ssl.SSLContext:
    """For connections that are verified by the public authorities; or one that is never used, which costs less."""
    with _making_tls:
        return ssl.create_default_context() if verifying else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Connections:
    """One pool of connections for each process, made when it is first needed.

    Args:
        make: opens a pool.
    """

    def __init__(self, make: Callable[[], GuardedTransport]) -> None:
        self._make = make
        self._of_processes: dict[int, _Pools] = {}

    @contextmanager
    def borrowed(self) -> Iterator[GuardedTransport]:
        """The pool, for as long as a call takes."""
        pools = self._here()
        pool = pools.take()
        try:
            yield pool.transport
        finally:
            pools.give_back(pool)

    def close(self) -> None:
        """Close what is idle now, and what is in use when it is given back. The next call opens a new pool."""
        self._here().close()

    def _here(self) -> _Pools:
        # The lock of before a fork may be held by a thread that does not exist here, so it is not looked at: each
        # process has its own, and putting that into the dictionary is atomic.
        pid = os.getpid()
        mine = self._of_processes.get(pid)
        if mine is None:
            mine = self._of_processes.setdefault(pid, _Pools(self._make))
            for other in [each for each in self._of_processes if each != pid]:
                parents = self._of_processes.pop(other, None)
                if parents is not None:
                    parents.abandon()
        return mine


class _Pools:
    """The pool of one process, and earlier ones that are still in use."""

    def __init__(self, make: Callable[[], GuardedTransport]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._current: _Pool | None = None
        self._all: set[_Pool] = set()

    def take(self) -> _Pool:
        taken = self._taken(None)
        if taken is None:
            made = _Pool(self._make())  # not under the lock: it reads files
            taken = self._taken(made)
            if taken is not made:
                made.close()
        return taken

    @overload
    def _taken(self, made: None) -> _Pool | None: ...
    @overload
    def _taken(self, made: _Pool) -> _Pool: ...
    def _taken(self, made: _Pool | None) -> _Pool | None:
        """The current pool, which is `made` where there is none."""
        with self._lock:
            if self._current is None and made is not None:
                self._current = made
                self._all.add(made)
            if self._current is not None:
                self._current.users += 1
            return self._current

    def give_back(self, pool: _Pool) -> None:
        with self._lock:
            pool.users -= 1
            over = pool.users == 0 and pool is not self._current
            if over:
                self._all.discard(pool)
        if over:
            pool.close()

    def close(self) -> None:
        with self._lock:
            pool, self._current = self._current, None
            over = pool is not None and pool.users == 0
            if over and pool is not None:
                self._all.discard(pool)
        if over and pool is not None:
            pool.close()

    def abandon(self) -> None:
        for pool in list(self._all):
            pool.abandon()


class _Pool:
    """Connections, and how many calls use them."""

    def __init__(self, transport: GuardedTransport) -> None:
        self.transport = transport
        self.users = 0
        # Closes them as well where nobody does; calling it ends it, so that nothing is kept for the end of the process.
        self._finalizer = weakref.finalize(self, transport.close)

    def close(self) -> None:
        self._finalizer()

    def abandon(self) -> None:
        self._finalizer.detach()
        self.transport.abandon()


# ------------------------------------------------------------------------------------------------- what is logged


def without_query(url: str) -> str:
    """The address as it may be logged: a query may hold a signature."""
    return url.partition("#")[0].partition("?")[0]


class WholeAddress(httpx.BaseTransport):
    """Sends a request to the address of its extension :data:`WHOLE_ADDRESS`."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._inner.handle_request(_whole(request))

    def close(self) -> None:
        self._inner.close()


class WholeAsyncAddress(httpx.AsyncBaseTransport):
    """The same as :class:`WholeAddress` for asyncio."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._inner.handle_async_request(_whole(request))

    async def aclose(self) -> None:
        await self._inner.aclose()


def _whole(request: httpx.Request) -> httpx.Request:
    extensions = dict(request.extensions)
    return httpx.Request(
        request.method,
        extensions.pop(WHOLE_ADDRESS),
        headers=request.headers,
        stream=request.stream,
        extensions=extensions,
    )
