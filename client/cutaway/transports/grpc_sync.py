"""KServe-v2 over gRPC for threads, through tritonclient."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from cutaway.cancel import Cancel, cancelled, closed
from cutaway.contract.errors import ServerRefused, ServerUnavailable
from cutaway.resilience import Deadline
from cutaway.transports.base import InferRequest, MemoryKind, MemoryRegion, ModelInfo
from cutaway.transports.connection import Connection
from cutaway.transports.grpc_wire import (
    CLOSED,
    FORKED,
    channel_of,
    failure_of,
    message_of,
    model_of,
    registering_of,
    tensors_of,
)
from cutaway.wire import Tensor

T = TypeVar("T")


class GrpcTransport:
    """See :class:`cutaway.transports.base.Transport`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = str(connection.address)
        self._client: Any = _Client(**channel_of(connection))
        self._closed = False

    def infer(self, request: InferRequest, cancel: Cancel | None = None) -> dict[str, Tensor]:
        message = message_of(request, self._connection.headers_of(request))
        started = time.monotonic()
        # A blocking call of gRPC can be cancelled neither from another thread nor by Ctrl-C; one that is under way can.
        done = threading.Lock()
        done.acquire()
        outcome: list[tuple[Any, InferenceServerException | None]] = []

        def finished(result: Any, error: InferenceServerException | None) -> None:
            outcome.append((result, error))
            done.release()

        call: Any = None
        unregister: Callable[[], None] | None = None
        try:
            call = self._usable().async_infer(callback=finished, **message)
            if cancel is not None:
                unregister = cancel.on_cancel(call.cancel)
            done.acquire()
        except BaseException as failure:
            if call is not None:
                call.cancel()
            if self._ended(failure):
                raise closed() from None
            raise
        finally:
            if unregister is not None:
                unregister()
        ((result, error),) = outcome
        if error is None:
            return tensors_of(result)
        if cancel is not None and cancel.cancelled:
            raise cancelled()
        if self._closed:
            raise closed()
        raise failure_of(error, self._address, time.monotonic() - started)

    def server_ready(self, timeout_s: float) -> bool:
        return bool(self._ask(lambda client, **sent: client.is_server_ready(**sent), timeout_s))

    def model_ready(self, model: str, timeout_s: float) -> bool:
        return bool(self._ask(lambda client, **sent: client.is_model_ready(model, **sent), timeout_s))

    def models(self, names: Sequence[str], timeout_s: float) -> list[ModelInfo]:
        deadline = Deadline(timeout_s)
        return [self._model(name, deadline) for name in names]

    def register(self, region: MemoryRegion, timeout_s: float) -> None:
        method, given = registering_of(region)
        self._ask(lambda client, **sent: getattr(client, method)(*given, **sent), timeout_s)

    def unregister(self, kind: MemoryKind, name: str, timeout_s: float) -> None:
        method = f"unregister_{kind}_shared_memory"
        self._ask(lambda client, **sent: getattr(client, method)(name, **sent), timeout_s)

    def registered(self, kind: MemoryKind, timeout_s: float) -> list[str]:
        method = f"get_{kind}_shared_memory_status"
        return list(self._ask(lambda client, **sent: getattr(client, method)(**sent), timeout_s).regions)

    def close(self) -> None:
        self._closed = True
        self._client.close()

    def _model(self, name: str, deadline: Deadline) -> ModelInfo:
        ready = self.model_ready(name, deadline.left_s)
        try:
            return model_of(self._ask(lambda client, **sent: client.get_model_metadata(name, **sent), deadline.left_s))
        except ServerUnavailable as error:
            if ready:
                raise
            return ModelInfo(name, state="NOT_FOUND" if isinstance(error, ServerRefused) else "UNAVAILABLE")

    def _ask(self, question: Callable[..., T], timeout_s: float) -> T:
        started = time.monotonic()
        try:
            return question(self._usable(), client_timeout=timeout_s, headers=self._connection.headers)
        except ValueError as error:
            if self._ended(error):
                raise closed() from None
            raise
        except InferenceServerException as error:
            if self._closed:
                raise closed() from None
            raise failure_of(error, self._address, time.monotonic() - started) from None

    def _ended(self, error: BaseException) -> bool:
        """Whether it is gRPC's complaint about a connection that was closed just before the request went out."""
        return self._closed and isinstance(error, ValueError)

    def _usable(self) -> Any:
        if self._closed:
            raise RuntimeError(CLOSED)
        if self._client.pid != os.getpid():
            raise RuntimeError(FORKED)
        return self._client


class _Client(triton.InferenceServerClient):  # type: ignore[misc]
    """Leaves the connections of the process that it was forked from alone."""

    def __init__(self, **channel: Any) -> None:
        self.pid = os.getpid()
        super().__init__(**channel)

    def close(self) -> None:
        if self.pid == os.getpid():
            super().close()
