"""KServe-v2 over HTTP for asyncio, through httpx."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import anyio
import httpcore
import httpx

from cutaway.addresses import resolve_async
from cutaway.cancel import closed
from cutaway.contract import limits
from cutaway.contract.errors import ServerRefused, ServerUnavailable
from cutaway.resilience import Deadline
from cutaway.transports import http_wire
from cutaway.transports.base import InferRequest, MemoryKind, MemoryRegion, ModelInfo
from cutaway.transports.connection import Connection
from cutaway.transports.loops import OneLoop
from cutaway.wire import Tensor


class AsyncHttpTransport:
    """See :class:`cutaway.transports.base.AsyncTransport`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = str(connection.address)
        self._ssl_context = http_wire.ssl_context_of(connection)
        self._loop = OneLoop()
        self._pid = os.getpid()
        self._client: httpx.AsyncClient | None = None
        self._parents: list[httpx.AsyncClient | None] = []

    async def infer(self, request: InferRequest) -> dict[str, Tensor]:
        body, headers = http_wire.message_of(request, self._connection.headers_of(request))
        path = http_wire.model_path(self._connection, request.model, "/infer")
        _, answer_headers, answer = await self._exchange(
            "POST", path, request.timeout_s, content=_pieces(body), headers=headers
        )
        return http_wire.tensors_of(answer_headers, answer, self._address)

    async def server_ready(self, timeout_s: float) -> bool:
        return await self._ready(http_wire.ready_path(self._connection), timeout_s)

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        return await self._ready(http_wire.model_path(self._connection, model, "/ready"), timeout_s)

    async def models(self, names: Sequence[str], timeout_s: float) -> list[ModelInfo]:
        overall = Deadline(timeout_s)
        return [await self._model(name, overall) for name in names]

    async def register(self, region: MemoryRegion, timeout_s: float) -> None:
        path = http_wire.memory_path(self._connection, region.kind, "register", region.name)
        await self._exchange("POST", path, timeout_s, content=http_wire.registering_of(region))

    async def unregister(self, kind: MemoryKind, name: str, timeout_s: float) -> None:
        await self._exchange("POST", http_wire.memory_path(self._connection, kind, "unregister", name), timeout_s)

    async def registered(self, kind: MemoryKind, timeout_s: float) -> list[str]:
        path = http_wire.memory_path(self._connection, kind, "status")
        return http_wire.registered_of((await self._exchange("GET", path, timeout_s))[2], self._address)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if self._loop.close() and client is not None and self._pid == os.getpid():
            await client.aclose()

    async def _model(self, name: str, overall: Deadline) -> ModelInfo:
        ready = await self.model_ready(name, overall.left_s)
        try:
            path = http_wire.model_path(self._connection, name)
            return http_wire.model_of((await self._exchange("GET", path, overall.left_s))[2], self._address)
        except ServerUnavailable as error:
            if ready:
                raise
            return ModelInfo(name, state="NOT_FOUND" if isinstance(error, ServerRefused) else "UNAVAILABLE")

    async def _ready(self, path: str, timeout_s: float) -> bool:
        return (await self._exchange("GET", path, timeout_s, expected=http_wire.READY_STATUSES))[0] == 200

    async def _exchange(
        self, method: str, path: str, timeout_s: float, *, expected: tuple[int, ...] = (200,), **sent: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        client = self._usable()
        started = time.monotonic()
        try:
            # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that arrives together with the answer.
            with anyio.fail_after(timeout_s):
                async with client.stream(method, path, **sent) as response:
                    body = http_wire.Body(response, expected)
                    async for part in response.aiter_raw():
                        if body.add(part):
                            break
        except (*http_wire.TIMEOUTS, *http_wire.BROKEN) as error:
            if self._client is None:
                raise closed() from None
            raise http_wire.broken_of(error, self._address, time.monotonic() - started, timeout_s) from None
        except asyncio.CancelledError:
            self._loop.raise_if_closed()
            raise
        if response.status_code not in expected:
            raise http_wire.failure_of(response, bytes(body.data), self._address, time.monotonic() - started)
        return response.status_code, response.headers, bytes(body.data)

    def _usable(self) -> httpx.AsyncClient:
        if self._pid != os.getpid():
            # The parent's connections are kept and not touched: they are registered with the parent's loop.
            self._parents.append(self._client)
            self._client, self._pid, self._loop = None, os.getpid(), self._loop.anew()
        self._loop.check()
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=_PooledTransport(self._ssl_context),
                base_url=http_wire.base_url(self._connection),
                headers=http_wire.base_headers(self._connection),
                timeout=httpx.Timeout(None, connect=limits.CONNECT_TIMEOUT_S),  # the deadline bounds every other wait
                trust_env=False,
            )
        return self._client


async def _pieces(body: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


class _PooledTransport(httpx.AsyncBaseTransport):
    """A pool of connections that looks names up in threads of its own; raises httpcore's exceptions."""

    def __init__(self, ssl_context: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=http_wire.MAX_IDLE,
            keepalive_expiry=http_wire.IDLE_S,
            network_backend=_Backend(),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        response = await self._pool.handle_async_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to addresses only: asyncio looks names up in its executor, and a name server that hangs would then keep
    the loop from ending."""

    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError(f"the name {host!r} has no address")
        try:
            with anyio.fail_after(timeout):
                bracketed = f"[{host}]" if ":" in host else host
                for address in await resolve_async(httpx.URL(f"http://{bracketed}:{port}")):
                    try:
                        return _Stream(
                            await self._backend.connect_tcp(address, port, None, local_address, socket_options)
                        )
                    except httpcore.ConnectError as error:
                        failure = error
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except httpx.ConnectError as error:
            raise httpcore.ConnectError(str(error)) from error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that is closed when its TLS handshake is cancelled: httpcore forgets it then."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
