"""A way to a server, with the pictures in shared memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from cutaway.cancel import Cancel
from cutaway.contract.errors import RequestCancelled
from cutaway.resilience import drive, drive_async
from cutaway.shared_memory import SharedMemory
from cutaway.shared_memory.lending import Lender, Step, clear
from cutaway.threads import Threads
from cutaway.transports.base import InferRequest, ModelInfo
from cutaway.transports.connection import Connection, open_async_transport, open_transport
from cutaway.wire import Tensor

CLOSED = "the connection is closed"


class SharingTransport:
    """See :class:`cutaway.transports.base.Transport`."""

    def __init__(self, connection: Connection, settings: SharedMemory) -> None:
        self._way = open_transport(connection)
        self._lender = Lender(settings, str(connection.address))
        self._closed = False
        # Also where nobody closes it, and when the interpreter ends.
        self._clear = weakref.finalize(self, clear, self._lender, connection)

    def infer(self, request: InferRequest, cancel: Cancel | None = None) -> dict[str, Tensor]:
        if self._closed:
            raise RuntimeError(CLOSED)

        def perform(step: Step) -> Any:
            if isinstance(step, InferRequest):
                return self._way.infer(step, cancel)
            return step(self._way)

        try:
            return drive(self._lender.serve(request), perform)
        except Exception as error:
            if self._closed:
                raise RequestCancelled("The client was closed.") from error
            raise

    def server_ready(self, timeout_s: float) -> bool:
        return self._way.server_ready(timeout_s)

    def model_ready(self, model: str, timeout_s: float) -> bool:
        return self._way.model_ready(model, timeout_s)

    def models(self, names: Sequence[str], timeout_s: float) -> list[ModelInfo]:
        return self._way.models(names, timeout_s)

    def close(self) -> None:
        self._closed = True
        self._way.close()
        self._clear()


class AsyncSharingTransport:
    """See :class:`cutaway.transports.base.AsyncTransport`."""

    def __init__(self, connection: Connection, settings: SharedMemory) -> None:
        self._way = open_async_transport(connection)
        self._lender = Lender(settings, str(connection.address))
        self._closed = False
        self._clear = weakref.finalize(self, clear, self._lender, connection)

    async def infer(self, request: InferRequest) -> dict[str, Tensor]:
        if self._closed:
            raise RuntimeError(CLOSED)

        async def perform(step: Step) -> Any:
            return await (self._way.infer(step) if isinstance(step, InferRequest) else step(self._way))

        try:
            return await drive_async(self._lender.serve(request), perform)
        except Exception as error:
            if self._closed:
                raise RequestCancelled("The client was closed.") from error
            raise

    async def server_ready(self, timeout_s: float) -> bool:
        return await self._way.server_ready(timeout_s)

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        return await self._way.model_ready(model, timeout_s)

    async def models(self, names: Sequence[str], timeout_s: float) -> list[ModelInfo]:
        return await self._way.models(names, timeout_s)

    async def aclose(self) -> None:
        self._closed = True
        await self._way.aclose()
        # No daemon: a process that ends meanwhile leaves no pictures behind. It takes two seconds at most.
        await Threads(1, daemon=False).run("letting go of shared memory", None, self._clear)
