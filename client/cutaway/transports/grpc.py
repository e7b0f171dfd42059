"""KServe-v2 over gRPC, through tritonclient."""

from __future__ import annotations

import os
import time
from os import PathLike
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from cutaway.contract import limits
from cutaway.transports.base import InferRequest, ModelInfo, Tensor, read_model, tensor
from cutaway.transports.connection import Connection, OneLoop
from cutaway.transports.failures import MAX_ANSWER_BYTES, error_of, malformed

# Given options replace tritonclient's own, and with them the message lengths: without these two, answers over 4 MB
# fail. Keepalive pings stay off, as there: Triton drops clients that ping more often than every five minutes.
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # Connections of its own, so that clients of one process share no state.
    ("grpc.use_local_subchannel_pool", 1),
    # After failed connections gRPC would refuse calls for up to two minutes, although the server is back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Despite its name this is the timeout of connecting; gRPC's own 20 seconds leave no time for another server.
    ("grpc.min_reconnect_backoff_ms", int(limits.CONNECT_TIMEOUT_S * 1000)),
)

FORKED = (
    "gRPC does not work in a process that was forked from one that used it: make the client after the fork and none "
    "before it, start processes by spawn, or use http://"
)
_used_in = 0  # the process whose gRPC was used; in a fork of it gRPC aborts the process


class GrpcTransport:
    """See :class:`cutaway.transports.base.Transport`; OSError or ValueError where a certificate cannot be read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = str(connection.address)
        self._channel = _channel_of(connection)
        self._client: OneLoop[Any] = OneLoop(self._opened)

    async def infer(self, request: InferRequest) -> dict[str, Tensor]:
        message: dict[str, Any] = {
            "model_name": request.model,
            "inputs": [_input_of(*each) for each in request.all_inputs.items()],
            "outputs": [triton.InferRequestedOutput(name) for name in request.outputs],
            "request_id": request.request_id,
            "headers": {**self._connection.headers, **request.headers},
            "parameters": dict(request.parameters),
        }
        if (part := request.sequence) is not None:
            message |= {"sequence_id": part.id, "sequence_start": part.begins, "sequence_end": part.ends}
        response = (await self._ask("infer", request.timeout_s, **message)).get_response()
        if len(response.raw_output_contents) != len(response.outputs):
            raise malformed("it has other tensors than it names")
        return {
            output.name: tensor(output.name, output.datatype, list(output.shape), raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }

    async def server_ready(self, timeout_s: float) -> bool:
        return bool(await self._ask("is_server_ready", timeout_s))

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        return bool(await self._ask("is_model_ready", timeout_s, model_name=model))

    async def metadata(self, model: str, timeout_s: float) -> ModelInfo:
        found = await self._ask("get_model_metadata", timeout_s, model_name=model, as_json=True)
        return read_model(found, self._address)

    async def aclose(self) -> None:
        if (client := self._client.close()) is not None:
            await client.close()

    def _opened(self) -> Any:
        global _used_in
        if _used_in not in (0, os.getpid()):
            raise RuntimeError(FORKED)
        _used_in = os.getpid()
        return triton.InferenceServerClient(**self._channel)

    async def _ask(self, method: str, timeout_s: float, **given: Any) -> Any:
        client, started = self._client.get(), time.monotonic()
        sent = {"headers": self._connection.headers, "client_timeout": timeout_s, **given}
        try:
            return await getattr(client, method)(**sent)
        except InferenceServerException as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            elapsed_s = time.monotonic() - started
            raise error_of(status, error.message() or "", address=self._address, elapsed_s=elapsed_s) from None


def _channel_of(connection: Connection) -> dict[str, Any]:
    """Keyword arguments of tritonclient's client."""
    address, tls = connection.address, connection.tls
    credentials = None
    if connection.encrypted:
        files: list[str | PathLike[str] | None] = [None, None, None]
        if tls is not None:
            tls.context()  # gRPC's own errors about the files come with the first connection, and without a reason
            files = [tls.ca_file, tls.key_file or tls.cert_file, tls.cert_file]
        credentials = grpc.ssl_channel_credentials(*(file and Path(file).read_bytes() for file in files))
    # Given here, because gRPC reads other variables than HTTP, in another order.
    proxy = ("grpc.http_proxy", connection.proxy) if connection.proxy else ("grpc.enable_http_proxy", 0)
    url = f"{address.host}:{address.port}"
    return {"url": url, "creds": credentials, "channel_args": [*CHANNEL_OPTIONS, proxy]}


def _input_of(name: str, value: bytes | NDArray[np.uint8]) -> Any:
    # An object, because numpy's bytes type drops zeros at the end.
    array = np.array([value], dtype=np.object_) if isinstance(value, bytes) else value
    made = triton.InferInput(name, list(array.shape), "BYTES" if isinstance(value, bytes) else "UINT8")
    made.set_data_from_numpy(array)
    return made
