"""The HTTP requests of one call: allowed addresses, the token, deadline, size of answers, and retries.

An answer has the address of the file to fetch ("output": "https://…"), which an attacker could point into the caller's
network (SSRF). So requests go to the provider's own origin, or by https to one of its few delivery hosts; each redirect
is checked like any other address.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, RateLimitExceeded, invalid_option
from cutaway.fallback.answers import ProviderUnavailable, decode_base64, invalid
from cutaway.resilience import Deadline, Retries
from cutaway.transports.base import parse_address
from cutaway.transports.connection import is_loopback, proxy_of

if TYPE_CHECKING:
    from cutaway.fallback.base import Model, Provider

logger = logging.getLogger("cutaway.providers")

MAX_REDIRECTS = 3
MAX_JSON_BYTES = limits.MIB

# Answers are pictures, which compression does not shrink, and a compressed body has no bounded size.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "cutaway"}
Origin = tuple[str, str, int]
_tls = functools.cache(ssl.create_default_context)  # reading the authorities takes time


class Secret:
    """A token that is masked in every representation, and in the error where a character in it is no token's."""

    def __init__(self, given: str | None, of: str, variables: tuple[str, ...] = ()) -> None:
        values = (value.strip() for value in (given or "", *(os.environ.get(name, "") for name in variables)))
        self._value, self._given, self._of, self._variables = next(filter(None, values), ""), bool(given), of, variables
        if not re.fullmatch(r"[\x21-\x7e]*", self._value):
            allowed = "printable ASCII without spaces"
            raise invalid_option("token", "not shown", allowed, f"The token of {of} has to be {allowed}.")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._given:
            raise TypeError("a token is not pickled: leave it to the environment of the other process")
        return Secret, (None, self._of, self._variables)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "set" if self._value else "none"

    def bearer(self) -> dict[str, str]:
        """The ``Authorization`` header; none without a token."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def scrub(self, text: str) -> str:
        """The text with the token masked, in case a service echoed it."""
        return text.replace(self._value, "***") if self._value else text


def origin_of(url: str) -> Origin | None:
    """Scheme, host in lower case and port; None where it is no http or https address, or holds a user."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    valid = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
    return (parts.scheme, (parts.hostname or "").lower(), port) if valid else None


def check_base_url(url: str, *, token: bool) -> Origin:
    """The origin of a provider's address; InvalidOption for one with secrets, or a token in plain text."""
    origin = origin_of(url)
    if not origin or "?" in url or "#" in url or (token and origin[0] == "http" and not is_loopback(origin[1])):
        allowed = "https://… (http://… without a token, or on this machine) without user, password, query and fragment"
        raise invalid_option("base_url", "not shown", allowed, f"base_url has to be {allowed}.")
    return origin


def check_target(url: str, own: Origin, delivery_hosts: tuple[str, ...], provider: str) -> bool:
    """Whether an address is of the provider's own origin; InvalidAnswer where it is no delivery host's either."""
    origin = origin_of(url)
    if origin == own:
        return True
    if origin is None or (origin[0], origin[2]) != ("https", 443):
        raise invalid(provider, "an address that is not plain https, which is not followed")
    if not f".{origin[1]}".endswith(tuple(f".{known}" for known in delivery_hosts)):
        raise invalid(provider, "an address at none of its delivery hosts, which is not followed")
    return False


class Request:
    """A call's HTTP requests to a provider: the deadline `overall`, and within it `deadline`, the provider's own
    timeout; retries, number of requests, and details for the result. Connections are closed with it: they belong to an
    event loop, and the other side may close an idle one just as a request that costs money is sent."""

    def __init__(self, provider: Provider, model: Model, deadline: Deadline, scale: int = 1) -> None:
        self.provider, self.model, self.scale = provider, model, scale
        self.overall = deadline.capped(deadline.left_s)
        self.requests, self.details = 0, dict[str, Any]()
        self.restart()

    def restart(self) -> None:
        """Restart the provider's own timeout, after a wait that is not part of it."""
        self.deadline = self.overall.capped(self.provider.timeout_s)
        self._retries = Retries(self.deadline, self.provider.policy, self.provider.budget)

    async def __aenter__(self) -> Self:
        # The transport alone: httpx's client logs addresses with their query, which may hold a signature.
        proxy = proxy_of(parse_address(self.provider.base_url)) or None
        self._transport = self.provider.transport or httpx.AsyncHTTPTransport(verify=_tls(), proxy=proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not self.provider.transport:
            await self._transport.aclose()

    async def send(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> httpx.Response:
        """:meth:`once` with retries by the policy. A request that is not repeatable costs money each time: it is
        retried only where it certainly was not accepted, without a connection or at a rate limit."""
        while True:
            if self.requests >= limits.HOSTED_MAX_REQUESTS:
                raise self.deadline.exceeded(self.provider.name)
            try:
                response = await self.once(method, url, **request)
                failure = self.provider.failure_of(response)
            except CutawayError as error:
                failure = error
            if failure is None:
                return response
            unsent = isinstance(failure, RateLimitExceeded) or failure.details.get("unsent")
            wait_s = self._retries.delay_s(failure) if repeatable or unsent else None
            if wait_s is None:
                raise failure
            await asyncio.sleep(wait_s)

    async def once(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
        max_bytes: int = MAX_JSON_BYTES,
        until: Callable[[bytes], object] = lambda _: False,
        **content: Any,
    ) -> httpx.Response:
        """Send one request to an address or a path below the provider's, with the token to its own origin only, and
        `content` as httpx takes it. `until` is called with the body so far, and ends one that its server keeps open."""
        provider = self.provider
        url = url if "://" in url else provider.base_url + url
        own = check_target(url, provider.origin, provider.delivery_hosts, provider.name)
        sent = {**HEADERS, **(headers or {}), **(provider.token.bearer() if own else {})}
        self.requests += 1
        started, outcome, body = time.monotonic(), "no answer", bytearray()
        try:
            async with (deadline or self.deadline).limit(provider.name):
                request = httpx.Request(method, url, headers=sent, **content)
                answer = await self._transport.handle_async_request(request)
                try:
                    if answer.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
                        raise invalid(provider.name, "a compressed body, which was not asked for")
                    length = answer.headers.get("content-length", "")[:20]
                    announced = int(length) if length.isdecimal() else 0
                    async for chunk in answer.aiter_bytes():
                        body += chunk
                        if max(announced, len(body)) > max_bytes:
                            raise invalid(provider.name, f"more than {max_bytes:,} bytes")
                        if until(bytes(body)):
                            break
                finally:
                    await answer.aclose()
            outcome = str(answer.status_code)
            return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(body))
        except httpx.TransportError as error:
            unsent = isinstance(error, httpx.ConnectError)
            message = f"{provider.name} {'cannot be reached' if unsent else 'broke the connection off'}."
            details = {"provider": provider.name, "status": None, "unsent": unsent}
            # A protocol error may quote a header with the token.
            cause = None if isinstance(error, httpx.ProtocolError) else error
            raise ProviderUnavailable(message, details=details) from cause
        finally:
            took_ms = (time.monotonic() - started) * 1000
            logger.debug("%s %s: %s, %.0f ms", method, url.partition("?")[0], outcome, took_ms)

    async def fetch(self, url: str) -> bytes:
        """The picture of a data URI, or at an address after at most three checked redirects."""
        if url.startswith("data:"):
            return decode_base64(url, self.provider.name)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self.send("GET", url, max_bytes=limits.HOSTED_MAX_ANSWER_BYTES)
            if response.status_code >= 300:
                url = urljoin(url, response.headers.get("location", ""))
            elif media_type(response).startswith(("image/", "application/octet-stream", "binary/octet-stream")):
                return response.content
            else:
                raise invalid(self.provider.name, f"a file of type {media_type(response)!r} instead of a picture")
        raise invalid(self.provider.name, "more redirects than are followed")


def media_type(response: httpx.Response) -> str:
    """The content type without its parameters, in lower case and short; "" where there is none."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()[:50]
