"""The requests of one call: allowed addresses, deadline, size of answers, and retries.

An answer has the address of the file to fetch ("output": "https://…"), which an attacker could point into the caller's
network (SSRF). So requests go to the provider's own origin, or by https to one of its few delivery hosts; each redirect
is checked like any other address.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InvalidOption, RateLimitExceeded
from cutaway.fallback import errors
from cutaway.fallback.answers import decode_base64
from cutaway.fallback.model import Model
from cutaway.resilience import Deadline, Retries

if TYPE_CHECKING:
    from cutaway.fallback.base import Provider

logger = logging.getLogger("cutaway.providers")

MAX_REDIRECTS = 3
MAX_JSON_BYTES = limits.MIB

HEADERS = {"Accept-Encoding": "identity", "User-Agent": "cutaway"}
"""Answers are pictures, which compression does not shrink, and a compressed body has no bounded size."""

Origin = tuple[str, str, int]


def origin_of(url: str) -> Origin:
    """Scheme, host in lower case and port of an address.

    Raises:
        ValueError: it is no http or https address, or it holds a user.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("not a plain http or https address")
    return parts.scheme, parts.hostname.lower(), parts.port or (443 if parts.scheme == "https" else 80)


def check_base_url(url: str, *, token: bool) -> Origin:
    """The origin of a provider's address.

    Raises:
        InvalidOption: no http or https address; or one with a user, a password, a query or a fragment, which would end
            up in logs; or plain http to another machine with a token.
    """
    try:
        origin = origin_of(url)
        if not ("?" in url or "#" in url or (token and origin[0] == "http" and not is_loopback(origin[1]))):
            return origin
    except ValueError:
        pass
    allowed = "https://… (http://… without a token, or on this machine) without user, password, query and fragment"
    details = {"name": "base_url", "value": "not shown", "allowed": allowed}
    raise InvalidOption(f"base_url has to be {allowed}.", details=details)


def check_target(url: str, own: Origin, delivery_hosts: tuple[str, ...], provider: str) -> bool:
    """Whether an address is of the provider's own origin, which gets the token; else it is a delivery host's.

    Raises:
        InvalidAnswer: it is neither.
    """
    try:
        scheme, host, port = origin = origin_of(url)
    except ValueError:
        raise errors.invalid(provider, "no plain http or https address, which is not followed", "points to") from None
    if origin == own:
        return True
    known = any(host == each or host.endswith(f".{each}") for each in delivery_hosts)
    if (scheme, port) != ("https", 443) or not known:
        why = "none of its delivery hosts" if scheme == "https" else "not a plain https address"
        raise errors.invalid(provider, f"{why}, which is not followed", "points to")
    return False


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Call:
    """One call of a provider: its deadlines, retries and number of requests; an asynchronous context manager.

    Its connections are closed with it: they belong to an event loop, and the other side may close an idle one just as
    a request that costs money is sent.

    Attributes:
        overall: the whole call's deadline.
        deadline: the provider's own timeout within it.
    """

    def __init__(self, provider: Provider, model: Model, deadline: Deadline, scale: int = 1) -> None:
        self.overall = deadline.capped(deadline.left_s)
        self.model = model
        self.scale = scale
        self.requests = 0
        self.details: dict[str, Any] = {}
        self._provider = provider
        self.restart()

    def restart(self) -> None:
        """Restart the provider's own timeout, after a wait that is not part of it."""
        self.deadline = self.overall.capped(self._provider.timeout_s)
        self._retries = Retries(self.deadline, self._provider._policy, self._provider._budget)

    async def __aenter__(self) -> Call:
        # Proxies come from the environment, but never for this machine.
        transport, trust_env = self._provider._transport, not is_loopback(self._provider._own[1])
        self._client = httpx.AsyncClient(verify=_tls(), transport=transport, trust_env=trust_env)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._provider._transport is None:
            await self._client.aclose()

    async def send(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> httpx.Response:
        """Send a request as :meth:`once` does, with retries by the policy.

        Args:
            repeatable: False for requests that cost money each time: retried only where they certainly were not
                accepted, without a connection or at a rate limit.

        Raises:
            CutawayError: the last attempt's failure.
        """
        while True:
            try:
                response = await self.once(method, url, **request)
                failure = self._provider._failure_of(response)
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
        """Send one request, with the token to the provider's own origin only.

        Args:
            url: an address, or a path below the provider's.
            deadline: instead of the call's own.
            max_bytes: maximum size of the answer.
            until: called with the body so far; True ends an answer that its server keeps open.
            content: `json`, `content` or `files` as httpx takes them.

        Raises:
            ProcessingTimeout: the deadline was exceeded before the answer's last byte.
            ProviderUnavailable: no connection (detail `unsent` is true), or a broken one.
            InvalidAnswer: the answer is larger, or compressed; or the address is not allowed.
        """
        provider, deadline = self._provider, deadline or self.deadline
        url = url if "://" in url else provider.base_url + url
        own = check_target(url, provider._own, provider.delivery_hosts, provider.name)
        sent = {**HEADERS, **(headers or {}), **(provider._token.bearer() if own else {})}
        if self.requests >= limits.HOSTED_MAX_REQUESTS:
            raise deadline.exceeded(provider.name)
        self.requests += 1
        started, outcome, masking = time.monotonic(), "no answer", _masking.set(True)
        try:
            deadline.check(provider.name)
            stream = self._client.stream(method, url, headers=sent, timeout=deadline.left_s, **content)
            async with deadline.limit(provider.name), stream as answer:
                body = await _body(answer, provider.name, max_bytes, until)
            outcome = str(answer.status_code)
            return httpx.Response(answer.status_code, headers=answer.headers, content=body)
        except httpx.InvalidURL:
            raise errors.invalid(provider.name, "an impossible address", "points to") from None
        except httpx.TransportError as error:
            unsent = isinstance(error, (httpx.ConnectError, httpx.UnsupportedProtocol))
            what = "cannot be reached" if unsent else "broke the connection off"
            details = {"provider": provider.name, "status": None, "unsent": unsent}
            # A protocol error may quote a header with the token.
            cause = None if isinstance(error, httpx.ProtocolError) else error
            raise errors.ProviderUnavailable(f"{provider.name} {what}.", details=details) from cause
        finally:
            _masking.reset(masking)
            shown, elapsed_ms = httpx.URL(url).copy_with(query=None), (time.monotonic() - started) * 1000
            logger.debug("%s %s: %s, %.0f ms", method, shown, outcome, elapsed_ms)

    async def fetch(self, url: str) -> bytes:
        """The picture of a data URI, or at an address after at most three redirects, each checked.

        Raises:
            InvalidAnswer: the address is not allowed, or it is no picture.
        """
        name = self._provider.name
        if url.startswith("data:"):
            return decode_base64(url, name)
        for _ in range(MAX_REDIRECTS + 1):
            response = await self.send("GET", url, max_bytes=limits.HOSTED_MAX_ANSWER_BYTES)
            if response.status_code < 300:
                break
            url = urljoin(url, response.headers.get("location", ""))
        else:
            raise errors.invalid(name, "more redirects than are followed")
        if not media_type(response).startswith(("image/", "application/octet-stream", "binary/octet-stream")):
            raise errors.invalid(name, f"a file of type {media_type(response)!r} instead of a picture")
        return response.content


def media_type(response: httpx.Response) -> str:
    """The content type without its parameters, in lower case and short; "" where there is none."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()[:50]


async def _body(answer: httpx.Response, provider: str, max_bytes: int, until: Callable[[bytes], bool]) -> bytes:
    if answer.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise errors.invalid(provider, "a compressed body, which was not asked for")
    length = answer.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise errors.invalid(provider, f"{int(length[:20]):,} bytes, at most {max_bytes:,} are taken")
    data = bytearray()
    async for chunk in answer.aiter_bytes():
        data += chunk
        if len(data) > max_bytes:
            raise errors.invalid(provider, f"more than {max_bytes:,} bytes")
        if until(bytes(data)):
            break
    return bytes(data)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Cached, because reading the authorities takes time."""
    return ssl.create_default_context()


_masking: ContextVar[bool] = ContextVar("masking", default=False)


def _without_query(record: logging.LogRecord) -> bool:
    """Remove queries from the addresses that httpx logs for this client: delivery hosts' have signatures there."""
    if _masking.get() and isinstance(record.args, tuple):
        record.args = tuple(a.copy_with(query=None) if isinstance(a, httpx.URL) else a for a in record.args)
    return True


logging.getLogger("httpx").addFilter(_without_query)
