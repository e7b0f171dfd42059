"""KServe-v2 over gRPC for asyncio, through tritonclient."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from cutaway.contract.errors import ServerRefused, ServerUnavailable
from cutaway.resilience import Deadline
from cutaway.transports.base import InferRequest, MemoryKind, MemoryRegion, ModelInfo
from cutaway.transports.connection import Connection
from cutaway.transports.grpc_wire import (
    FORKED,
    channel_of,
    failure_of,
    message_of,
    model_of,
    registering_of,
    tensors_of,
)
from cutaway.transports.loops import OneLoop
from cutaway.wire import Tensor

T = TypeVar("T")


class AsyncGrpcTransport:
    """See :class:`cutaway.transports.base.AsyncTransport`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = str(connection.address)
        self._channel = channel_of(connection)
        self._loop = OneLoop()
        self._pid = os.getpid()
        self._client: Any = None

    async def infer(self, request: InferRequest) -> dict[str, Tensor]:
        message = message_of(request, self._connection.headers_of(request))
        return tensors_of(await self._ask(lambda client: client.infer(**message)))

    async def server_ready(self, timeout_s: float) -> bool:
        sent = self._sent(timeout_s)
        return bool(await self._ask(lambda client: client.is_server_ready(**sent)))

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        sent = self._sent(timeout_s)
        return bool(await self._ask(lambda client: client.is_model_ready(model, **sent)))

    async def models(self, names: Sequence[str], timeout_s: float) -> list[ModelInfo]:
        deadline = Deadline(timeout_s)
        return [await self._model(name, deadline) for name in names]

    async def register(self, region: MemoryRegion, timeout_s: float) -> None:
        method, given = registering_of(region)
        await self._ask(lambda client: getattr(client, method)(*given, **self._sent(timeout_s)))

    async def unregister(self, kind: MemoryKind, name: str, timeout_s: float) -> None:
        method = f"unregister_{kind}_shared_memory"
        await self._ask(lambda client: getattr(client, method)(name, **self._sent(timeout_s)))

    async def registered(self, kind: MemoryKind, timeout_s: float) -> list[str]:
        method = f"get_{kind}_shared_memory_status"
        status: Any = await self._ask(lambda client: getattr(client, method)(**self._sent(timeout_s)))
        return list(status.regions)

    async def aclose(self) -> None:
        if self._loop.close() and self._client is not None and self._pid == os.getpid():
            await self._client.close()

    async def _model(self, name: str, deadline: Deadline) -> ModelInfo:
        ready = await self.model_ready(name, deadline.left_s)
        sent = self._sent(deadline.left_s)
        try:
            return model_of(await self._ask(lambda client: client.get_model_metadata(name, **sent)))
        except ServerUnavailable as error:
            if ready:
                raise
            return ModelInfo(name, state="NOT_FOUND" if isinstance(error, ServerRefused) else "UNAVAILABLE")

    def _sent(self, timeout_s: float) -> dict[str, Any]:
        return {"client_timeout": timeout_s, "headers": self._connection.headers}

    async def _ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        if self._pid != os.getpid():
            raise RuntimeError(FORKED)
        self._loop.check()
        if self._client is None:  # a channel belongs to the loop in which it is made
            self._client = triton.InferenceServerClient(**self._channel)
        started = time.monotonic()
        try:
            return await question(self._client)
        except InferenceServerException as error:
            raise failure_of(error, self._address, time.monotonic() - started) from None
        except asyncio.CancelledError:
            self._loop.raise_if_closed()
            raise
