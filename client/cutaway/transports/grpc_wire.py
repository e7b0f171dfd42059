"""What gRPC for threads and for asyncio share: the channel's settings, and messages to and fro."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError
from cutaway.transports.base import InferRequest, InputTensor, MemoryRegion, ModelInfo, TensorInfo
from cutaway.transports.connection import Connection
from cutaway.wire import MAX_ANSWER_BYTES, Tensor, error_of, malformed, tensor

# Given options replace tritonclient's own, and with them the message lengths: without these two, answers over 4 MB
# fail. Keepalive pings stay off, as there: Triton drops clients that ping more often than every five minutes.
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    # Connections of its own, so that clients of one process share no state.
    ("grpc.use_local_subchannel_pool", 1),
    # After failed connections gRPC would refuse calls for up to two minutes, although the server is long back.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Despite its name this bounds how long connecting may take; gRPC's own 20 seconds leave no time for another server.
    ("grpc.min_reconnect_backoff_ms", int(limits.CONNECT_TIMEOUT_S * 1000)),
)

FORKED = (
    "a gRPC client does not work in a process that was forked from the one that made it: make the client after the "
    "fork, or use http://"
)
CLOSED = "the connection is closed"


def channel_of(connection: Connection) -> dict[str, Any]:
    """Keyword arguments of tritonclient's clients.

    Raises:
        OSError, ValueError: a certificate's file cannot be read.
    """
    address, tls = connection.address, connection.tls
    credentials = None
    if connection.encrypted:
        if tls is not None:
            tls.context()  # gRPC would say what is wrong with the files only when it connects, and hardly then
        credentials = grpc.ssl_channel_credentials(
            root_certificates=None if tls is None or tls.ca_file is None else Path(tls.ca_file).read_bytes(),
            private_key=None
            if tls is None or tls.cert_file is None
            else Path(tls.key_file or tls.cert_file).read_bytes(),
            certificate_chain=None if tls is None or tls.cert_file is None else Path(tls.cert_file).read_bytes(),
        )
    return {
        "url": f"{address.host}:{address.port}",
        "creds": credentials,
        "channel_args": list(CHANNEL_OPTIONS),
    }


def message_of(request: InferRequest, headers: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments of tritonclient's inference."""
    if request.region:
        image = triton.InferInput("image", [1], "BYTES")
        image.set_shared_memory(request.region, 4 + len(request.image))
        inputs = [image]
    elif request.inputs is not None:
        inputs = [_input_of(each) for each in request.inputs]
    else:
        inputs = [_input_of(InputTensor("image", request.image))]
    part = request.sequence
    return {
        "model_name": request.model,
        "inputs": inputs,
        "outputs": [triton.InferRequestedOutput(name) for name in request.outputs],
        "request_id": request.request_id,
        "client_timeout": request.timeout_s,
        "headers": headers,
        "parameters": dict(request.parameters),
        **({} if part is None else {"sequence_id": part.id, "sequence_start": part.begins, "sequence_end": part.ends}),
    }


def _input_of(tensor: InputTensor) -> Any:
    if isinstance(tensor.value, bytes):
        made = triton.InferInput(tensor.name, [1], "BYTES")
        # object and not numpy's bytes type, which drops zeros at the end.
        made.set_data_from_numpy(np.array([tensor.value], dtype=np.object_))
    else:
        made = triton.InferInput(tensor.name, list(tensor.value.shape), "UINT8")
        made.set_data_from_numpy(tensor.value)
    return made


def registering_of(region: MemoryRegion) -> tuple[str, tuple[Any, ...]]:
    """The method of tritonclient's clients that registers a region, and its arguments."""
    if region.kind == "system":
        return "register_system_shared_memory", (region.name, region.key, region.n_bytes)
    return "register_cuda_shared_memory", (region.name, region.handle, region.device_id, region.n_bytes)


def tensors_of(result: Any) -> dict[str, Tensor]:
    """
    Raises:
        InferenceError: they make no sense.
    """
    response = result.get_response()
    if len(response.raw_output_contents) != len(response.outputs):
        raise malformed("it has other tensors than it names")
    return {
        output.name: tensor(output.name, output.datatype, list(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def model_of(metadata: Any) -> ModelInfo:
    """What a ready model's metadata say."""
    return ModelInfo(
        name=metadata.name,
        versions=tuple(metadata.versions),
        state="READY",
        platform=metadata.platform,
        inputs=_described(metadata.inputs),
        outputs=_described(metadata.outputs),
    )


def _described(tensors: Any) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(each.name, each.datatype, tuple(each.shape)) for each in tensors)


def failure_of(error: InferenceServerException, address: str, elapsed_s: float) -> CutawayError:
    status = str(error.status() or "").removeprefix("StatusCode.")
    return error_of(status, error.message() or "", address=address, elapsed_s=elapsed_s)
