"""The requests of one call: allowed addresses, the token, deadline, size of answers, and retries.

An answer has the address of the file to fetch ("output": "https://…"), which an attacker could point into the caller's
network (SSRF). So requests go to the provider's own origin, or by https to one of its few delivery hosts; each redirect
is checked like any other address.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InvalidOption, RateLimitExceeded
from cutaway.fallback.answers import ProviderUnavailable, decode_base64, invalid
from cutaway.resilience import Deadline, Retries
from cutaway.transports.base import parse_address
from cutaway.transports.connection import is_loopback, proxy_of

if TYPE_CHECKING:
    from typing import Self

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

    def __init__(self, value: str, of: str) -> None:
        if not re.fullmatch(r"[\x21-\x7e]*", value.strip()):
            details = {"name": "token", "value": "not shown", "allowed": "printable ASCII without spaces"}
            raise InvalidOption(f"The token of {of} has to be {details['allowed']}.", details=details)
        self._value = value.strip()

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
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return parts.scheme, parts.hostname.lower(), port


def check_base_url(url: str, *, token: bool) -> Origin:
    """The origin of a provider's address; InvalidOption for one with secrets, or a token in plain text."""
    origin = origin_of(url)
    if origin and not ("?" in url or "#" in url or (token and origin[0] == "http" and not is_loopback(origin[1]))):
        return origin
    allowed = "https://… (http://… without a token, or on this machine) without user, password, query and fragment"
    details = {"name": "base_url", "value": "not shown", "allowed": allowed}
    raise InvalidOption(f"base_url has to be {allowed}.", details=details)


def check_target(url: str, own: Origin, delivery_hosts: tuple[str, ...], provider: str) -> bool:
    """Whether an address is of the provider's own origin; InvalidAnswer where it is no delivery host's either."""
    origin = origin_of(url)
    if origin == own:
        return True
    if origin is None or (origin[0], origin[2]) != ("https", 443):
        raise invalid(provider, "not a plain https address, which is not followed", "points to")
    if not f".{origin[1]}".endswith(tuple(f".{known}" for known in delivery_hosts)):
        raise invalid(provider, "none of its delivery hosts, which is not followed", "points to")
    return False


class Call:
    """One call of a provider, as an asynchronous context manager: the deadline `overall`, and within it `deadline`, the
    provider's own timeout; retries, number of requests, and details for the result.

    Its connections are closed with it: they belong to an event loop, and the other side may close an idle one just as
    a request that costs money is sent.
    """

    def __init__(self, provider: Provider, model: Model, deadline: Deadline, scale: int = 1) -> None:
        self.model, self.scale, self.overall = model, scale, deadline.capped(deadline.left_s)
        self.requests, self.details = 0, dict[str, Any]()
        self._provider = provider
        self.restart()

    def restart(self) -> None:
        """Restart the provider's own timeout, after a wait that is not part of it."""
        self.deadline = self.overall.capped(self._provider.timeout_s)
        self._retries = Retries(self.deadline, self._provider.policy, self._provider.budget)

    async def __aenter__(self) -> Self:
        # The transport alone: httpx's client logs addresses with their query, which may hold a signature.
        proxy = proxy_of(parse_address(self._provider.base_url)) or None
        self._transport = self._provider.transport or httpx.AsyncHTTPTransport(verify=_tls(), proxy=proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not self._provider.transport:
            await self._transport.aclose()

    async def send(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> httpx.Response:
        """Send a request as :meth:`once` does, with retries by the policy.

        Requests that are not repeatable cost money each time: they are retried only where they certainly were not
        accepted, without a connection or at a rate limit.
        """
        while True:
            if self.requests >= limits.HOSTED_MAX_REQUESTS:
                raise self.deadline.exceeded(self._provider.name)
            try:
                response = await self.once(method, url, **request)
                failure = self._provider.failure_of(response)
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
        until: Callable[[bytes], bool] = lambda _: False,
        **content: Any,
    ) -> httpx.Response:
        """Send one request to an address or a path below the provider's, with the token to its own origin only.

        Args:
            deadline: instead of the call's own; `max_bytes` bounds the answer.
            until: called with the body so far; True ends an answer that its server keeps open.
            content: `json`, `content` or `files` as httpx takes them.

        Raises:
            ProcessingTimeout, InvalidAnswer; ProviderUnavailable, with the detail `unsent` where no request was sent.
        """
        provider, deadline = self._provider, deadline or self.deadline
        url = url if "://" in url else provider.base_url + url
        own = check_target(url, provider.origin, provider.delivery_hosts, provider.name)
        sent = {**HEADERS, **(headers or {}), **(provider.token.bearer() if own else {})}
        request = httpx.Request(method, url, headers=sent, **content)
        self.requests += 1
        started, outcome = time.monotonic(), "no answer"
        try:
            async with deadline.limit(provider.name):
                answer = await self._transport.handle_async_request(request)
                try:
                    body = await _body(answer, provider.name, max_bytes, until)
                finally:
                    await answer.aclose()
            outcome = str(answer.status_code)
            return httpx.Response(answer.status_code, headers=answer.headers, content=body)
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
        name = self._provider.name
        if url.startswith("data:"):
            return decode_base64(url, name)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self.send("GET", url, max_bytes=limits.HOSTED_MAX_ANSWER_BYTES)
            if response.status_code < 300:
                if media_type(response).startswith(("image/", "application/octet-stream", "binary/octet-stream")):
                    return response.content
                raise invalid(name, f"a file of type {media_type(response)!r} instead of a picture")
            url = urljoin(url, response.headers.get("location", ""))
        raise invalid(name, "more redirects than are followed")


def media_type(response: httpx.Response) -> str:
    """The content type without its parameters, in lower case and short; "" where there is none."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()[:50]


async def _body(answer: httpx.Response, provider: str, max_bytes: int, until: Callable[[bytes], bool]) -> bytes:
    if answer.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise invalid(provider, "a compressed body, which was not asked for")
    length, data = answer.headers.get("content-length", ""), bytearray()
    too_large = invalid(provider, f"more than {max_bytes:,} bytes")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    async for chunk in answer.aiter_bytes():
        data += chunk
        if len(data) > max_bytes:
            raise too_large
        if until(bytes(data)):
            break
    return bytes(data)
