"""Pictures from the web: only from hosts that were named, and never from inside the caller's network.

    fetcher = Fetcher(allow=["images.example.com", "*.cdn.example.com"])
    picture = fetcher.fetch("https://images.example.com/photo.jpg")
    result = client.cut(picture.data, media_type=picture.media_type)

A URL that comes from a user makes the fetching machine act for that user: it must reach neither the network's own
servers nor the cloud's metadata. So every hop is checked anew (scheme, host, port), its name is resolved once, all
addresses found have to be public, and the connection goes to one that was checked (:mod:`cutaway.addresses`). Proxies
of the environment are not used, since they would resolve names themselves.
"""

from __future__ import annotations

import logging
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field

import anyio
import httpcore
import httpx

from cutaway.addresses import DEFAULT_PORTS, PinnedAsyncTransport, PinnedTransport, is_address, is_inside, is_public
from cutaway.contract.errors import FileTooLarge, InvalidFormat, InvalidOption, ServerUnavailable, invalid_option
from cutaway.contract.limits import FETCH_MAX_REDIRECTS, FETCH_SCHEMES, FETCH_TIMEOUT_S, INPUT_LIMITS, MEDIA_TYPES
from cutaway.resilience import Deadline, drive, drive_async, parse_retry_after
from cutaway.transports.deadline import DeadlineTransport, deadline

logger = logging.getLogger("cutaway.fetch")

_REDIRECTS = (301, 302, 303, 307, 308)
_WORTH_A_RETRY = (408, 425, 429)
_UNTYPED = ("application/octet-stream", "binary/octet-stream")
_TIMEOUTS = (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)
_UNREACHED = (httpx.ConnectError, httpcore.ConnectError)
_BROKEN = (httpx.TransportError, httpcore.NetworkError, httpcore.ProtocolError)

# No compression: a compressed body has no bounded size, and pictures are compressed already.
_HEADERS = {"Accept": "image/*, application/octet-stream;q=0.5", "User-Agent": "cutaway"}
_FIXED_HEADERS = {"Accept-Encoding": "identity"}
_RESERVED = ("host", "content-length", "transfer-encoding", "connection", "accept-encoding")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*")
_ENTRY = re.compile(r"(\*\.)?(\[[0-9a-fA-F:.]+\]|[^\s\[\]:/@?#*\\]+)(?::([0-9]{1,5}))?")


class FetchRefused(InvalidOption):
    """A URL that may not be fetched, or whose host says no. Details: name ("url"), value (its host), allowed, and the
    status where the host answered with one."""


@dataclass(frozen=True)
class Fetched:
    """A picture as it came; whether it is one, :meth:`cutaway.Client.cut` checks.

    Attributes:
        data: the body.
        media_type: what the host declares it to be, without parameters.
        url: where it lay in the end, after redirects. It may hold a signature, so it is left out of the repr.
    """

    data: bytes = field(repr=False)
    media_type: str
    url: str = field(repr=False)


@dataclass(frozen=True)
class _Allowed:
    """One entry of the allow list: a host's name or address; with `below`, every name that ends in `.host`."""

    host: str
    port: int | None
    below: bool

    def fits(self, host: str, port: int, default_port: int) -> bool:
        named = host.endswith(f".{self.host}") and host[0] != "." if self.below else host == self.host
        return named and port == (default_port if self.port is None else self.port)


class Fetcher:
    """Fetches pictures from hosts that are allowed; safe to share between threads, event loops and after a fork.

    Args:
        allow: host names ("images.example.com"), or all names below one ("*.cdn.example.com"; the name itself is not
            among them). A port other than the scheme's own (443, 80) has to stand there: "images.example.com:8443".
        max_bytes: a longer body is given up.
        timeout_s: seconds that a fetch may take, from resolving the name to the last byte, redirects included.
        schemes: "https", "http" or both.
        headers: sent to the URL's own host, not beyond a redirect to another; they never show in a repr or an error.
        allow_private: also fetch from private addresses and this machine, for an intranet or a test. Link-local
            addresses and a cloud's metadata stay refused.

    Raises:
        InvalidOption: nothing is allowed, or an entry, a scheme, a header or a number is not one.
    """

    def __init__(
        self,
        allow: Sequence[str],
        *,
        max_bytes: int = INPUT_LIMITS.max_file_bytes,
        timeout_s: float = FETCH_TIMEOUT_S,
        schemes: Sequence[str] = FETCH_SCHEMES,
        headers: Mapping[str, str] | None = None,
        allow_private: bool = False,
    ) -> None:
        if isinstance(allow, str) or not allow:
            raise invalid_option("allow", allow, "a list of host names, such as ['images.example.com']")
        self._allow = tuple(_entry(entry, allow_private) for entry in allow)
        self._allowed_text = ", ".join(allow)
        if isinstance(schemes, str) or not schemes or not set(schemes) <= set(DEFAULT_PORTS):
            raise invalid_option("schemes", schemes, "'https', 'http', or both, in a list")
        self._schemes = tuple(schemes)
        if max_bytes < 1:
            raise invalid_option("max_bytes", max_bytes, "1 and more")
        self._max_bytes = max_bytes
        self._timeout_s = _seconds(timeout_s)
        self._headers = _checked_headers(headers or {})
        self._allow_private = allow_private
        self._lock = threading.Lock()
        self._made: tuple[int, PinnedTransport] | None = None
        self._tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"<cutaway.Fetcher of {self._allowed_text}>"

    def fetch(self, url: str, *, timeout_s: float | None = None) -> Fetched:
        """Fetch a picture.

        Args:
            url: an http or https address without user and password.
            timeout_s: takes the place of the fetcher's.

        Raises:
            FetchRefused: the URL, a redirect's, or an address behind its name is not allowed; there are more than three
                redirects; or the host answers with a status that will not change.
            FileTooLarge: the host announces or sends more than `max_bytes`.
            InvalidFormat: what it sends is declared to be no picture, or compressed.
            ServerUnavailable: the host cannot be reached, breaks off, or says that it cannot now.
            ProcessingTimeout: it takes too long.
        """
        until = self._deadline(timeout_s)
        return drive(self._hops(url), lambda hop: self._get(hop, until))

    async def fetch_async(self, url: str, *, timeout_s: float | None = None) -> Fetched:
        """The same as :meth:`fetch` for asyncio; cancelling the task ends the connection."""
        until = self._deadline(timeout_s)
        return await drive_async(self._hops(url), lambda hop: self._get_async(hop, until))

    # -------------------------------------------------------------------------------------------------- the rules

    def _hops(self, url: str) -> Generator[_Hop, _Reading, Fetched]:
        target = self._checked(url)
        first = target
        for _ in range(FETCH_MAX_REDIRECTS + 1):
            own = (target.scheme, target.host, target.port) == (first.scheme, first.host, first.port)
            reading = yield _Hop(target, {**_HEADERS, **(self._headers if own else {}), **_FIXED_HEADERS})
            if reading.location is None:
                return Fetched(bytes(reading.data), reading.media_type, str(target))
            target = self._checked(reading.location, came_from=target)
        raise self._refused(target.host, f"leads through more than {FETCH_MAX_REDIRECTS} redirects")

    def _checked(self, url: str, came_from: httpx.URL | None = None) -> httpx.URL:
        """The URL in the form in which it is connected to, so that no two parsers can differ about its host."""
        try:
            target = httpx.URL(url) if came_from is None else came_from.join(url)
            host = target.raw_host.decode("ascii").removesuffix(".")
            default_port = DEFAULT_PORTS.get(target.scheme, 0)
            target = target.copy_with(host=host, fragment=None)
        except (httpx.InvalidURL, ValueError, TypeError):  # UnicodeError, which is a ValueError, for impossible names
            raise self._refused("", "is not one") from None
        if target.scheme not in self._schemes:
            raise self._refused(host, f"is not {' or '.join(self._schemes)}")
        if target.userinfo:
            raise self._refused(host, "holds a user or a password")
        port = default_port if target.port is None else target.port
        if not any(entry.fits(host, port, default_port) for entry in self._allow):
            raise self._refused(host, "is of a host or port that is not allowed")
        if is_address(host):
            self._check_addresses(target, [host])
        return target

    def _check_addresses(self, url: httpx.URL, addresses: Sequence[str]) -> None:
        allowed = is_inside if self._allow_private else is_public
        if not all(allowed(address) for address in addresses):
            raise self._refused(url.host, "leads to an address that is not public")

    def _refused(self, host: str, why: str, **more: object) -> FetchRefused:
        return FetchRefused(
            f"The URL{f' of {host}' if host else ''} {why}.",
            details={"name": "url", "value": host, "allowed": self._allowed_text, **more},
            user_action="Use a URL of an allowed host that gives a picture, or allow the host.",
        )

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self._timeout_s if timeout_s is None else _seconds(timeout_s))

    # ------------------------------------------------------------------------------------------------ one request

    def _get(self, hop: _Hop, until: Deadline) -> _Reading:
        host, started = hop.url.host, time.monotonic()
        try:
            until.check(host)
            with deadline(until.left_s), closing(self._transport().handle_request(hop.request(until))) as answer:
                reading = self._reading(host, answer)
                if reading.location is None:
                    for chunk in answer.iter_raw():
                        until.check(host)
                        reading.add(chunk)
        except Exception as error:
            raise self._failure(hop, error, until, started) from error
        _log(hop, "fetched" if reading.location is None else "redirect", started)
        return reading

    async def _get_async(self, hop: _Hop, until: Deadline) -> _Reading:
        host, started = hop.url.host, time.monotonic()
        # Connections belong to the event loop that made them, so they live as long as the request.
        inner = httpx.AsyncHTTPTransport(verify=self._authorities())
        transport = PinnedAsyncTransport(self._check_addresses, lambda _: inner)
        try:
            with anyio.fail_after(until.left_s):
                async with inner, aclosing(await transport.handle_async_request(hop.request(until))) as answer:
                    reading = self._reading(host, answer)
                    if reading.location is None:
                        async for chunk in answer.aiter_raw():
                            reading.add(chunk)
        except Exception as error:
            raise self._failure(hop, error, until, started) from error
        _log(hop, "fetched" if reading.location is None else "redirect", started)
        return reading

    def _reading(self, host: str, answer: httpx.Response) -> _Reading:
        """What the head of an answer promises.

        Raises:
            FetchRefused, ServerUnavailable: by its status.
            InvalidFormat, FileTooLarge: by its headers.
        """
        status = answer.status_code
        if status in _REDIRECTS and "location" in answer.headers:
            return _Reading(host, self._max_bytes, "", answer.headers["location"])
        if status in _WORTH_A_RETRY or status >= 500:
            raise ServerUnavailable(
                f"{host} answers with status {status}.",
                details={"host": host, "status": status},
                retry_after=parse_retry_after(answer.headers.get("retry-after")),
                user_action="Try again in a moment.",
            )
        if status != 200:
            raise self._refused(host, f"is answered with status {status}", status=status)
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not media_type.startswith("image/") and media_type not in _UNTYPED:
            raise _no_picture(host, media_type[:100] or "no content type")
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise _no_picture(host, f"a body in {encoding[:100]}, which was not asked for")
        reading = _Reading(host, self._max_bytes, media_type, None)
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise reading.too_large(int(length[:20]))
        return reading

    def _failure(self, hop: _Hop, error: Exception, until: Deadline, started: float) -> Exception:
        host = hop.url.host
        failure = error
        if isinstance(error, _TIMEOUTS):
            failure = until.exceeded(host)
        elif isinstance(error, _UNREACHED) and _is_distrust(error):
            failure = _unavailable(host, "has a certificate that is not trusted")
        elif isinstance(error, _UNREACHED):
            failure = _unavailable(host, "cannot be reached")
        elif isinstance(error, _BROKEN):
            failure = _unavailable(host, "broke the connection off")
        _log(hop, getattr(failure, "code", type(failure).__name__), started)
        return failure

    def _transport(self) -> PinnedTransport:
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                # No idle connections: requests go to bare addresses, and of two names at one address neither may use
                # a connection whose certificate is the other's.
                inner = DeadlineTransport(max_idle=0)
                self._made = os.getpid(), PinnedTransport(self._check_addresses, lambda _: inner)
            return self._made[1]

    def _authorities(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls


@dataclass(frozen=True)
class _Hop:
    """One request of a fetch. It goes to a transport as it is: httpx's clients keep cookies, and log whole URLs."""

    url: httpx.URL
    headers: dict[str, str]

    def request(self, until: Deadline) -> httpx.Request:
        timeout = httpx.Timeout(until.left_s).as_dict()
        return httpx.Request("GET", self.url, headers=self.headers, extensions={"timeout": timeout})


class _Reading:
    """An answer as far as it came: where it points to, or its body."""

    def __init__(self, host: str, max_bytes: int, media_type: str, location: str | None) -> None:
        self.media_type = media_type
        self.location = location
        self.data = bytearray()
        self._host = host
        self._max_bytes = max_bytes

    def add(self, chunk: bytes) -> None:
        self.data += chunk
        if len(self.data) > self._max_bytes:
            raise self.too_large(len(self.data))

    def too_large(self, size: int) -> FileTooLarge:
        return FileTooLarge(
            f"{self._host} sends {size:,} bytes or more; at most {self._max_bytes:,} are taken.",
            details={"size_bytes": size, "max_bytes": self._max_bytes},
        )


def _entry(entry: str, allow_private: bool) -> _Allowed:
    allowed = "a host name, or *. and one, with :port where it is not the scheme's own"
    found = _ENTRY.fullmatch(entry) if isinstance(entry, str) else None
    if found is None:
        raise invalid_option("allow", entry, allowed)
    below, name, port = found[1] is not None, found[2].removesuffix("."), found[3]
    try:
        host = httpx.URL(f"https://{name}").raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        raise invalid_option("allow", entry, allowed) from None
    if below and (is_address(host) or ("." not in host and not allow_private)):
        raise invalid_option("allow", entry, "*. before a name that is somebody's, and not all of a top-level domain")
    if port is not None and not 1 <= int(port) <= 65535:
        raise invalid_option("allow", entry, "a port from 1 to 65535")
    return _Allowed(host, None if port is None else int(port), below)


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        sound = _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)
        if not sound or name.lower() in _RESERVED:
            raise invalid_option("headers", name, f"names and values of ASCII, and none of {', '.join(_RESERVED)}")
    return dict(headers)


def _seconds(timeout_s: float) -> float:
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise invalid_option("timeout_s", timeout_s, "seconds, more than 0")
    return timeout_s


def _no_picture(host: str, received: str) -> InvalidFormat:
    return InvalidFormat(
        f"{host} sends {received} and no picture.",
        details={"supported": list(MEDIA_TYPES.values()), "received": received},
        user_action="Use the URL of the picture itself, and not of a page that shows it.",
    )


def _unavailable(host: str, what: str) -> ServerUnavailable:
    return ServerUnavailable(
        f"{host} {what}.", details={"host": host}, user_action="Check the URL, or try again in a moment."
    )


def _is_distrust(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _log(hop: _Hop, outcome: str, started: float) -> None:
    elapsed_ms = (time.monotonic() - started) * 1000
    logger.debug("GET %s://%s: %s, %.0f ms", hop.url.scheme, hop.url.host, outcome, elapsed_ms)
