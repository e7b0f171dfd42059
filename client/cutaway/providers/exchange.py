"""Sending one request of :mod:`.steps` with httpx, inside its deadline; failures come out as Cutaway's errors.

Redirects are not followed here and bodies are read as they come, up to the request's limit.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpcore
import httpx

from cutaway.cancel import Cancel, cancelled
from cutaway.contract.errors import RequestCancelled
from cutaway.providers.apart import apart, apart_async
from cutaway.providers.connections import (
    WHOLE_ADDRESS,
    Connections,
    WholeAddress,
    WholeAsyncAddress,
    tls_context,
    without_query,
)
from cutaway.providers.errors import InvalidAnswer, ProviderUnavailable
from cutaway.providers.guard import GuardedAsyncTransport, GuardedTransport
from cutaway.providers.steps import Request, Response, Step, Steps, T, Work
from cutaway.resilience import drive, drive_async
from cutaway.transports.deadline import DeadlineTransport, deadline

logger = logging.getLogger("cutaway.providers")

_TIMEOUTS = (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)
_UNSENT = (httpx.ConnectError, httpcore.ConnectError, httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol)
_BROKEN = (
    httpx.TransportError,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpcore.ProxyError,
)
_QUOTING = (httpx.ProtocolError, httpcore.ProtocolError)
"""What may quote a header that was sent, or one that sends it back."""

IDLE_S = 5.0
"""A connection that waits longer may have been closed by the other side, and what costs money is not sent twice."""

BASE_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "cutaway"}
"""Answers are pictures, which compression does not shrink, and a compressed body has no bounded size."""


class Exchange:
    """Runs a provider's steps, synchronously or with asyncio; safe to share between threads and after a fork.

    Args:
        provider: its name, for messages.
        own: scheme, host and port that may be reached whatever their address is.
        transport, async_transport: httpx transports to use instead of the guarded ones, for a proxy or a test. Then
            names are resolved by them, and only addresses that are written as numbers are checked.
    """

    def __init__(
        self,
        provider: str,
        own: tuple[str, str, int],
        *,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._provider = provider
        self._own = own
        self._transport = transport
        self._async_transport = async_transport
        self._connections = Connections(self._guarded)
        self._tls: ssl.SSLContext | None = None

    def run(self, steps: Steps[T], cancel: Cancel | None = None) -> T:
        """
        Raises:
            RequestCancelled: `cancel` was used; steps that undo what was begun are still performed.
        """
        if self._transport is not None:
            return self._run(steps, cancel, self._transport)
        with self._connections.borrowed() as transport:
            return self._run(steps, cancel, transport)

    async def run_async(self, steps: Steps[T]) -> T:
        if self._async_transport is not None:
            given = httpx.AsyncClient(transport=WholeAsyncAddress(self._async_transport), trust_env=False)
            return await drive_async(steps, lambda step: self._perform_async(given, step))
        # Connections belong to the event loop that made them, so they live as long as the call.
        guarded = GuardedAsyncTransport(
            httpx.AsyncHTTPTransport(verify=self._own_tls()),
            lambda: httpx.AsyncHTTPTransport(
                verify=self._authorities(), limits=httpx.Limits(max_keepalive_connections=0)
            ),
            self._own,
            self._provider,
        )
        async with httpx.AsyncClient(transport=WholeAsyncAddress(guarded), trust_env=False) as client:
            return await drive_async(steps, lambda step: self._perform_async(client, step))

    def close(self) -> None:
        """Close idle connections, and those in use when their calls have ended. The next call opens new ones."""
        self._connections.close()

    def _run(self, steps: Steps[T], cancel: Cancel | None, transport: httpx.BaseTransport) -> T:
        # The client is not closed: its transport is shared with other calls.
        client = httpx.Client(transport=WholeAddress(transport), trust_env=False)
        heeded = cancel

        def perform(step: Step) -> Any:
            nonlocal heeded
            try:
                return self._perform(client, step, heeded)
            except RequestCancelled:
                heeded = None
                raise

        return drive(steps, perform)

    def _guarded(self) -> GuardedTransport:
        return GuardedTransport(
            DeadlineTransport(idle_s=IDLE_S, ssl_context=self._own_tls()),
            lambda: DeadlineTransport(max_idle=0, ssl_context=self._authorities()),
            self._own,
            self._provider,
        )

    def _own_tls(self) -> ssl.SSLContext:
        """For the provider's own address. Without TLS nothing is verified, and reading the authorities takes time."""
        return self._authorities() if self._own[0] == "https" else tls_context(verifying=False)

    def _authorities(self) -> ssl.SSLContext:
        # No lock: a fork would take it along for ever, and whoever comes second makes one too many.
        if self._tls is None:
            self._tls = tls_context(verifying=True)
        return self._tls

    # ------------------------------------------------------------------------------------------ one request

    def _perform(self, client: httpx.Client, step: Step, cancel: Cancel | None) -> Any:
        if cancel is not None:
            cancel.check()
        if isinstance(step, Request):
            return self._send(client, step, cancel)
        if isinstance(step, Work):
            return apart(step.do, step.deadline, step.doing, cancel)
        if cancel is None:
            time.sleep(step.seconds)
        elif cancel.wait(step.seconds):
            cancel.check()
        return None

    async def _perform_async(self, client: httpx.AsyncClient, step: Step) -> Any:
        if isinstance(step, Request):
            return await self._send_async(client, step)
        if isinstance(step, Work):
            return await apart_async(step.do, step.deadline, step.doing)
        await asyncio.sleep(step.seconds)
        return None

    def _send(self, client: httpx.Client, request: Request, cancel: Cancel | None) -> Response:
        started = time.monotonic()
        try:
            request.deadline.check(self._provider)
            left_s = request.deadline.left_s
            with (
                deadline(left_s, cancel),
                client.stream(
                    request.method,
                    without_query(request.url),
                    headers={**BASE_HEADERS, **request.headers},
                    content=request.body or None,
                    timeout=left_s,
                    follow_redirects=False,
                    extensions={WHOLE_ADDRESS: request.url},
                ) as answer,
            ):
                body = _Body(request, answer, self._provider)
                for chunk in answer.iter_bytes():
                    request.deadline.check(self._provider)
                    if body.add(chunk):
                        break
                response = body.response()
        except BaseException as error:
            given_up = isinstance(error, Exception) and cancel is not None and cancel.cancelled
            failure = self._failure(request, cancelled() if given_up else error, started)
            if failure is error:
                raise
            raise failure from _shown(error)
        self._log(request, str(response.status), started)
        return response

    async def _send_async(self, client: httpx.AsyncClient, request: Request) -> Response:
        started = time.monotonic()
        try:
            request.deadline.check(self._provider)
            # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that arrives together with the answer.
            with anyio.fail_after(request.deadline.left_s):
                response = await self._receive_async(client, request)
        except BaseException as error:
            failure = self._failure(request, error, started)
            if failure is error:
                raise
            raise failure from _shown(error)
        self._log(request, str(response.status), started)
        return response

    async def _receive_async(self, client: httpx.AsyncClient, request: Request) -> Response:
        async with client.stream(
            request.method,
            without_query(request.url),
            headers={**BASE_HEADERS, **request.headers},
            content=request.body or None,
            timeout=request.deadline.left_s,
            follow_redirects=False,
            extensions={WHOLE_ADDRESS: request.url},
        ) as answer:
            body = _Body(request, answer, self._provider)
            async for chunk in answer.aiter_bytes():
                if body.add(chunk):
                    break
            return body.response()

    def _failure(self, request: Request, error: BaseException, started: float) -> BaseException:
        """The error to raise; what is no failure of the exchange (Ctrl-C, a cancelled task) passes as it is."""
        failure: BaseException = error
        if isinstance(error, _TIMEOUTS):
            failure = request.deadline.exceeded(self._provider)
        elif isinstance(error, _UNSENT):
            failure = self._unavailable("cannot be reached", unsent=True)
        elif isinstance(error, _BROKEN):
            failure = self._unavailable("broke the connection off", unsent=False)
        elif isinstance(error, httpx.InvalidURL):
            failure = InvalidAnswer(
                f"{self._provider} points to an impossible address.", details={"provider": self._provider}
            )
        self._log(request, getattr(failure, "code", type(failure).__name__), started)
        return failure

    def _unavailable(self, what: str, *, unsent: bool) -> ProviderUnavailable:
        return ProviderUnavailable(
            f"{self._provider} {what}.", details={"provider": self._provider, "status": None, "unsent": unsent}
        )

    def _log(self, request: Request, outcome: str, started: float) -> None:
        parts = urlsplit(request.url)  # a query may hold a signature, so it is left out
        elapsed_ms = (time.monotonic() - started) * 1000
        logger.debug(
            "%s %s://%s%s: %s, %.0f ms", request.method, parts.scheme, parts.netloc, parts.path, outcome, elapsed_ms
        )


def _shown(error: BaseException) -> BaseException | None:
    """The cause that a traceback may show."""
    return None if isinstance(error, _QUOTING) else error


class _Body:
    """An answer's body as far as it came."""

    def __init__(self, request: Request, answer: httpx.Response, provider: str) -> None:
        self._answer = answer
        self._max_bytes = request.max_bytes
        self._until: Callable[[bytes], bool] | None = request.until
        self._provider = provider
        self._data = bytearray()
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._refusal(f"{int(length[:20]):,} bytes, at most {self._max_bytes:,} are taken")
        if answer.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise self._refusal("a compressed body, which was not asked for")

    def add(self, chunk: bytes) -> bool:
        """Take a chunk; True where nothing more is wanted."""
        self._data += chunk
        if len(self._data) > self._max_bytes:
            raise self._refusal(f"more than {self._max_bytes:,} bytes")
        return self._until is not None and self._until(bytes(self._data))

    def response(self) -> Response:
        headers = {name.lower(): value for name, value in self._answer.headers.items()}
        return Response(self._answer.status_code, headers, bytes(self._data))

    def _refusal(self, what: str) -> InvalidAnswer:
        return InvalidAnswer(f"{self._provider} answered with {what}.", details={"provider": self._provider})
