"""KServe-v2 over HTTP for threads.

tritonclient's HTTP client belongs to one thread and bounds only single reads; this one is shared between threads and
keeps one deadline per call (:mod:`cutaway.transports.deadline`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from cutaway.cancel import Cancel, cancelled, closed
from cutaway.contract import limits
from cutaway.contract.errors import ServerRefused, ServerUnavailable
from cutaway.resilience import Deadline
from cutaway.transports import http_wire
from cutaway.transports.base import InferRequest, MemoryKind, MemoryRegion, ModelInfo
from cutaway.transports.connection import Connection
from cutaway.transports.deadline import DeadlineTransport, deadline
from cutaway.wire import Tensor


class HttpTransport:
    """See :class:`cutaway.transports.base.Transport`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = str(connection.address)
        self._ssl_context = http_wire.ssl_context_of(connection)
        self._lock = threading.Lock()
        self._closing = Cancel()
        self._made = self._make()

    def infer(self, request: InferRequest, cancel: Cancel | None = None) -> dict[str, Tensor]:
        body, headers = http_wire.message_of(request, self._connection.headers_of(request))
        path = http_wire.model_path(self._connection, request.model, "/infer")
        _, answer_headers, answer = self._exchange(
            "POST", path, request.timeout_s, cancel=cancel, content=iter(body), headers=headers
        )
        return http_wire.tensors_of(answer_headers, answer, self._address)

    def server_ready(self, timeout_s: float) -> bool:
        return self._ready(http_wire.ready_path(self._connection), timeout_s)

    def model_ready(self, model: str, timeout_s: float) -> bool:
        return self._ready(http_wire.model_path(self._connection, model, "/ready"), timeout_s)

    def models(self, names: Sequence[str], timeout_s: float) -> list[ModelInfo]:
        overall = Deadline(timeout_s)
        return [self._model(name, overall) for name in names]

    def register(self, region: MemoryRegion, timeout_s: float) -> None:
        path = http_wire.memory_path(self._connection, region.kind, "register", region.name)
        self._exchange("POST", path, timeout_s, content=http_wire.registering_of(region))

    def unregister(self, kind: MemoryKind, name: str, timeout_s: float) -> None:
        self._exchange("POST", http_wire.memory_path(self._connection, kind, "unregister", name), timeout_s)

    def registered(self, kind: MemoryKind, timeout_s: float) -> list[str]:
        path = http_wire.memory_path(self._connection, kind, "status")
        return http_wire.registered_of(self._exchange("GET", path, timeout_s)[2], self._address)

    def close(self) -> None:
        self._closing.cancel()  # closing a socket would not wake the thread that waits on it
        if self._made.pid == os.getpid():
            self._made.client.close()

    def _model(self, name: str, overall: Deadline) -> ModelInfo:
        ready = self.model_ready(name, overall.left_s)
        try:
            path = http_wire.model_path(self._connection, name)
            return http_wire.model_of(self._exchange("GET", path, overall.left_s)[2], self._address)
        except ServerUnavailable as error:
            if ready:
                raise
            return ModelInfo(name, state="NOT_FOUND" if isinstance(error, ServerRefused) else "UNAVAILABLE")

    def _ready(self, path: str, timeout_s: float) -> bool:
        return self._exchange("GET", path, timeout_s, expected=http_wire.READY_STATUSES)[0] == 200

    def _exchange(
        self,
        method: str,
        path: str,
        timeout_s: float,
        *,
        expected: tuple[int, ...] = (200,),
        cancel: Cancel | None = None,
        **sent: Any,
    ) -> tuple[int, Mapping[str, str], bytes]:
        client = self._usable()
        started = time.monotonic()
        try:
            with deadline(timeout_s, cancel, self._closing), client.stream(method, path, **sent) as response:
                body = http_wire.Body(response, expected)
                # Raw, not decompressed: compression is never asked for, and a folded answer would be a bomb of its own.
                for part in response.iter_raw():
                    if body.add(part):
                        break
        except (*http_wire.TIMEOUTS, *http_wire.BROKEN) as error:
            if cancel is not None and cancel.cancelled:
                raise cancelled() from None
            if self._closing.cancelled:
                raise closed() from None
            raise http_wire.broken_of(error, self._address, time.monotonic() - started, timeout_s) from None
        except RuntimeError:  # httpx's, where the client was closed just before
            if self._closing.cancelled:
                raise closed() from None
            raise
        if response.status_code not in expected:
            raise http_wire.failure_of(response, bytes(body.data), self._address, time.monotonic() - started)
        return response.status_code, response.headers, bytes(body.data)

    def _usable(self) -> httpx.Client:
        """The connections of this process: after a fork, new ones."""
        if self._closing.cancelled:
            raise RuntimeError("the connection is closed")
        if self._made.pid != os.getpid():
            with self._lock:
                if self._made.pid != os.getpid():
                    self._made.transport.abandon()
                    self._made = self._make()
        return self._made.client

    def _make(self) -> _Made:
        return _Made(self._connection, self._ssl_context)


class _Made:
    """The connections of one process."""

    def __init__(self, connection: Connection, ssl_context: Any) -> None:
        self.pid = os.getpid()
        self.transport = DeadlineTransport(
            max_connections=None,  # as many as threads that ask
            max_idle=http_wire.MAX_IDLE,
            idle_s=http_wire.IDLE_S,
            connect_s=limits.CONNECT_TIMEOUT_S,
            ssl_context=ssl_context,
        )
        self.client = httpx.Client(
            transport=self.transport,
            base_url=http_wire.base_url(connection),
            headers=http_wire.base_headers(connection),
            timeout=httpx.Timeout(None),  # the deadline bounds every wait
            trust_env=False,
        )
