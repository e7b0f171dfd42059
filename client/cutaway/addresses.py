"""Which IP addresses are public, and connections that go to the very addresses that were checked.

A name is resolved once, its addresses are checked, and one of them is connected to: a second look-up could say
something else (DNS rebinding). TLS and the ``Host`` header keep the name. Used by the hosted providers' clients and by
:class:`cutaway.fetch.Fetcher`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import httpcore
import httpx

MAX_ADDRESSES = 4
"""Of a name with several addresses so many are tried."""

DEFAULT_PORTS = {"http": 80, "https": 443}

# IPv6 addresses whose last 32 bits are an IPv4 address, beside those that `ipaddress` knows.
_HOLDING_IPV4 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
_LOOPBACK, _UNSPECIFIED = ipaddress.ip_address("::1"), ipaddress.ip_address("::")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# What some versions of `ipaddress` call global: protocol assignments, the relays of 6to4, documentation.
_NOT_PUBLIC = tuple(ipaddress.ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20"))
# Where clouds tell a machine its credentials, beside the link-local 169.254.169.254.
_METADATA = tuple(
    ipaddress.ip_address(address) for address in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
)

Check = Callable[[httpx.URL, Sequence[str]], None]
"""Raises where a request to this URL may not go to these addresses."""


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host in lower case and port of an address.

    Raises:
        ValueError: it is no http or https address.
    """
    parts = urlsplit(url)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("not an http or https address")
    return parts.scheme, parts.hostname.lower(), DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: none of a private network, this machine, a link, a cloud's
    metadata, a multicast group, or of an IPv6 form that leads to such an IPv4 address.

    Raises:
        ValueError: it is no IP address.
    """
    ip = _reached(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    listed = ip in _METADATA or any(ip in network for network in _NOT_PUBLIC)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or listed)


def is_inside(address: str) -> bool:
    """Whether an IP address may be a server's, public or not: not link-local, none of a cloud's metadata, no multicast
    group, and not the one that stands for none.

    Raises:
        ValueError: it is no IP address.
    """
    ip = _reached(address)
    return not (ip in _METADATA or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


def _reached(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address itself, or the IPv4 address that an IPv6 one leads to."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address) or ip in (_LOOPBACK, _UNSPECIFIED):
        return ip
    inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    if inner is None and any(ip in network for network in _HOLDING_IPV4):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return inner or ip


def is_address(host: str) -> bool:
    """Whether a URL's host is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class PinnedTransport(httpx.BaseTransport):
    """Resolves a request's name, has the addresses checked, and sends it to the first of them that can be reached.

    Args:
        check: raises where the addresses are not allowed.
        choose: the transport that carries a request to this URL.
    """

    def __init__(self, check: Check, choose: Callable[[httpx.URL], httpx.BaseTransport]) -> None:
        self._check = check
        self._choose = choose

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        addresses = resolve(request.url, request.extensions.get("timeout", {}).get("connect"))
        self._check(request.url, addresses)
        transport = self._choose(request.url)
        failure: Exception = httpx.ConnectError("the name has no address")
        for pinned in _pinned(request, addresses):
            try:
                return transport.handle_request(pinned)
            except (httpx.ConnectError, httpcore.ConnectError) as error:
                failure = error
        raise failure


class PinnedAsyncTransport(httpx.AsyncBaseTransport):
    """The same as :class:`PinnedTransport` for asyncio."""

    def __init__(self, check: Check, choose: Callable[[httpx.URL], httpx.AsyncBaseTransport]) -> None:
        self._check = check
        self._choose = choose

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        addresses = await resolve_async(request.url)
        self._check(request.url, addresses)
        transport = self._choose(request.url)
        failure: Exception = httpx.ConnectError("the name has no address")
        for pinned in _pinned(request, addresses):
            try:
                return await transport.handle_async_request(pinned)
            except httpx.ConnectError as error:
                failure = error
        raise failure


def _pinned(request: httpx.Request, addresses: Sequence[str]) -> Iterator[httpx.Request]:
    extensions = dict(request.extensions)
    if request.url.scheme == "https" and not is_address(request.url.host):
        extensions["sni_hostname"] = request.url.raw_host.decode("ascii")
    for address in addresses[:MAX_ADDRESSES]:
        yield httpx.Request(
            request.method,
            request.url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions=extensions,
        )


# --------------------------------------------------------------------------------------------------- name servers


def resolve(url: httpx.URL, timeout_s: float | None) -> list[str]:
    """The addresses of a URL's host. A name server that hangs costs no more than the timeout.

    Raises:
        httpx.ConnectError: the name cannot be resolved.
        httpx.ConnectTimeout: the name server does not answer in time.
    """
    if is_address(url.host):
        return [url.host]
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()
    look_up_apart(url, answers.put)
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise httpx.ConnectTimeout("the name server does not answer") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


async def resolve_async(url: httpx.URL) -> list[str]:
    """The same as :func:`resolve` for asyncio; whoever awaits it sets the timeout."""
    if is_address(url.host):
        return [url.host]
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str] | Exception] = loop.create_future()

    def settle(answer: list[str] | Exception) -> None:
        if not future.done():
            future.set_result(answer)

    def deliver(answer: list[str] | Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, answer)

    look_up_apart(url, deliver)
    answer = await future
    if isinstance(answer, Exception):
        raise answer
    return answer


def look_up_apart(url: httpx.URL, deliver: Callable[[list[str] | Exception], None]) -> None:
    """Ask the name server in a thread that nobody has to wait for: getaddrinfo cannot be interrupted, and in the
    loop's own executor it would keep asyncio.run() from ending."""
    host, port = url.raw_host.decode("ascii"), url.port or DEFAULT_PORTS[url.scheme]

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            deliver(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except (OSError, UnicodeError):
            deliver(httpx.ConnectError(f"the name {host!r} cannot be resolved"))

    threading.Thread(target=look_up, name="cutaway-resolve", daemon=True).start()
