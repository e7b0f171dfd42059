"""Where a provider's client may connect to: its own address, and public ones that answers point to.

An answer names the file to fetch ("output": "https://…"). Left unchecked, whoever controls the answer makes the caller
fetch from inside the caller's network. So an address other than the provider's own has to be https and resolve to
public addresses only, and the connection goes to the very address that was checked: a second look-up could say
something else. This holds for every request, after redirects too.
"""

from __future__ import annotations

import asyncio
import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import httpcore
import httpx

from cutaway.errors import InvalidOption
from cutaway.providers.errors import InvalidAnswer

MAX_ADDRESSES = 4
"""Of a name with several addresses so many are tried."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host in lower case and port of an address.

    Raises:
        ValueError: it is no http or https address.
    """
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("not an http or https address")
    return parts.scheme, parts.hostname.lower(), _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port


def check_base_url(url: str) -> str:
    """A provider's address without a slash at its end.

    Raises:
        InvalidOption: no http or https address; or one with a user, a password, a query or a fragment, which would end
            up in logs.
    """
    try:
        origin_of(url)
        parts = urlsplit(url)
        plain = "@" not in parts.netloc and not parts.query and not parts.fragment
    except ValueError:
        plain = False
    if not plain:
        allowed = "http://… or https://…, without user, password, query and fragment"
        raise InvalidOption(
            f"base_url has to be {allowed}.", details={"name": "base_url", "value": "not shown", "allowed": allowed}
        )
    return url.rstrip("/")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def check_target(url: str, own: tuple[str, str, int], provider: str) -> None:
    """Refuse an address that can be refused without asking a name server.

    Raises:
        InvalidAnswer: it is neither the provider's own nor a public https address.
    """
    try:
        scheme, host, _ = origin = origin_of(url)
    except ValueError:
        raise _refused(provider, "no http or https address") from None
    if origin == own:
        return
    if scheme != "https" or "@" in urlsplit(url).netloc:
        raise _refused(provider, "not a plain https address")
    try:
        public = is_public(host)
    except ValueError:
        return  # a name: its addresses are looked at when connecting
    if not public:
        raise _refused(provider, "not a public address")


def _refused(provider: str, why: str) -> InvalidAnswer:
    return InvalidAnswer(f"{provider} points to {why}, which is not followed.", details={"provider": provider})


class _Guard:
    """Turns a request to a name into requests to its checked addresses."""

    def __init__(self, own: tuple[str, str, int], provider: str) -> None:
        self._own = own
        self._provider = provider

    def is_own(self, request: httpx.Request) -> bool:
        return origin_of(str(request.url)) == self._own

    def pinned(self, request: httpx.Request, addresses: Sequence[str]) -> list[httpx.Request]:
        url = request.url
        check_target(str(url), self._own, self._provider)
        if not self.is_own(request) and not all(is_public(address) for address in addresses):
            raise _refused(self._provider, "a name that leads to an address that is not public")
        extensions = dict(request.extensions)
        if url.scheme == "https" and not _is_address(url.host):
            extensions["sni_hostname"] = url.host
        return [
            httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions=extensions,
            )
            for address in addresses[:MAX_ADDRESSES]
        ]


class GuardedTransport(httpx.BaseTransport):
    """Connects only to what :mod:`.guard` allows; everything else is the inner transports'.

    Args:
        inner: for the provider's own address.
        elsewhere: makes the one for all others when it is needed. It keeps no idle connections: requests go to bare
            addresses, and of two names at one address (a content network has many) neither may use a connection
            whose certificate is the other's.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        elsewhere: Callable[[], httpx.BaseTransport],
        own: tuple[str, str, int],
        provider: str,
    ) -> None:
        self._inner = inner
        self._elsewhere = elsewhere
        self._made: httpx.BaseTransport | None = None
        self._lock = threading.Lock()
        self._guard = _Guard(own, provider)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        timeout = request.extensions.get("timeout", {}).get("connect")
        failure: Exception = httpx.ConnectError("the name has no address")
        transport = self._inner if self._guard.is_own(request) else self._other()
        for pinned in self._guard.pinned(request, _resolve(request.url, timeout)):
            try:
                return transport.handle_request(pinned)
            except (httpx.ConnectError, httpcore.ConnectError) as error:
                failure = error
        raise failure

    def close(self) -> None:
        self._inner.close()
        if self._made is not None:
            self._made.close()

    def _other(self) -> httpx.BaseTransport:
        with self._lock:
            if self._made is None:
                self._made = self._elsewhere()
            return self._made


class GuardedAsyncTransport(httpx.AsyncBaseTransport):
    """The same as :class:`GuardedTransport` for asyncio."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        elsewhere: Callable[[], httpx.AsyncBaseTransport],
        own: tuple[str, str, int],
        provider: str,
    ) -> None:
        self._inner = inner
        self._elsewhere = elsewhere
        self._made: httpx.AsyncBaseTransport | None = None
        self._guard = _Guard(own, provider)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        addresses = await _resolve_async(request.url)
        transport = self._inner if self._guard.is_own(request) else self._other()
        failure: Exception = httpx.ConnectError("the name has no address")
        for pinned in self._guard.pinned(request, addresses):
            try:
                return await transport.handle_async_request(pinned)
            except httpx.ConnectError as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        await self._inner.aclose()
        if self._made is not None:
            await self._made.aclose()

    def _other(self) -> httpx.AsyncBaseTransport:
        if self._made is None:
            self._made = self._elsewhere()
        return self._made


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolve(url: httpx.URL, timeout_s: float | None) -> list[str]:
    """The addresses of a URL's host. A name server that hangs costs no more than the timeout."""
    if _is_address(url.host):
        return [url.host]
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()
    _look_up_apart(url, answers.put)
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise httpx.ConnectTimeout("the name server does not answer") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


async def _resolve_async(url: httpx.URL) -> list[str]:
    if _is_address(url.host):
        return [url.host]
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str] | Exception] = loop.create_future()

    def settle(answer: list[str] | Exception) -> None:
        if not future.done():
            future.set_result(answer)

    def deliver(answer: list[str] | Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, answer)

    _look_up_apart(url, deliver)
    answer = await future
    if isinstance(answer, Exception):
        raise answer
    return answer


def _look_up_apart(url: httpx.URL, deliver: Callable[[list[str] | Exception], None]) -> None:
    """Ask the name server in a thread that nobody has to wait for: getaddrinfo cannot be interrupted, and in the
    loop's own executor it would keep asyncio.run() from ending."""
    host, port = url.host, url.port or _DEFAULT_PORTS[url.scheme]

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            deliver(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError):
            deliver(httpx.ConnectError(f"the name {host!r} cannot be resolved"))

    threading.Thread(target=look_up, name="cutaway-resolve", daemon=True).start()
