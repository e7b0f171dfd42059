"""KServe-v2 over gRPC, through tritonclient."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from cutaway.cancel import Cancel
from cutaway.transports.base import InferRequest
from cutaway.transports.connection import Connection
from cutaway.wire import MAX_ANSWER_BYTES, Tensor, error_of, malformed, tensor

# Given options replace tritonclient's own, and with them the message lengths: without these two, answers over 4 MB
# fail. Keepalive pings stay off, as there: Triton drops clients that ping more often than every five minutes.
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # Connections of its own, so that clients of one process share no state.
    ("grpc.use_local_subchannel_pool", 1),
    # After failed connections gRPC would refuse calls for up to two minutes, although the server is long back. The
    # option grpc.min_reconnect_backoff_ms stays alone: it also bounds how long connecting may take.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


class GrpcTransport:
    """See :class:`cutaway.transports.base.Transport`."""

    def __init__(self, connection: Connection) -> None:
        address = connection.address
        self._address = str(address)
        self._client: Any = triton.InferenceServerClient(
            f"{address.host}:{address.port}",
            ssl=address.scheme == "grpcs",
            channel_args=list(CHANNEL_OPTIONS),
        )

    def infer(self, request: InferRequest, cancel: Cancel | None = None) -> dict[str, Tensor]:
        image = triton.InferInput("image", [1], "BYTES")
        # object and not numpy's bytes type, which drops zeros at the end.
        image.set_data_from_numpy(np.array([request.image], dtype=np.object_))
        started = time.monotonic()
        try:
            result = self._client.infer(
                request.model,
                [image],
                outputs=[triton.InferRequestedOutput(name) for name in request.outputs],
                request_id=request.request_id,
                client_timeout=request.timeout_s,
                parameters=dict(request.parameters),
            )
        except InferenceServerException as error:
            self._fail(error, started)
        return _tensors(result.get_response())

    def server_ready(self, timeout_s: float) -> bool:
        started = time.monotonic()
        try:
            return bool(self._client.is_server_ready(client_timeout=timeout_s))
        except InferenceServerException as error:
            self._fail(error, started)

    def model_ready(self, model: str, timeout_s: float) -> bool:
        started = time.monotonic()
        try:
            return bool(self._client.is_model_ready(model, client_timeout=timeout_s))
        except InferenceServerException as error:
            self._fail(error, started)

    def close(self) -> None:
        self._client.close()

    def _fail(self, error: InferenceServerException, started: float) -> NoReturn:
        status = str(error.status() or "").removeprefix("StatusCode.")
        raise error_of(
            status, error.message() or "", address=self._address, elapsed_s=time.monotonic() - started
        ) from None


def _tensors(response: Any) -> dict[str, Tensor]:
    if len(response.raw_output_contents) != len(response.outputs):
        raise malformed("it has other tensors than it names")
    return {
        output.name: tensor(output.name, output.datatype, list(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
