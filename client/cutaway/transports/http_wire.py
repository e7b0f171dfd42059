"""What HTTP for threads and for asyncio share: KServe-v2 with binary tensors, and what failures mean."""

from __future__ import annotations

import json
import ssl
import struct
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpcore
import httpx

from cutaway import __version__
from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, ServerUnavailable
from cutaway.resilience import parse_retry_after
from cutaway.transports.base import InferRequest, InputTensor, MemoryKind, MemoryRegion, ModelInfo, TensorInfo
from cutaway.transports.connection import Connection
from cutaway.wire import (
    MAX_ANSWER_BYTES,
    STATUS_OF_HTTP,
    Tensor,
    error_of,
    http_message,
    malformed,
    no_triton,
    refused,
    tensor,
    timed_out,
    untrusted,
)

JSON_LENGTH = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON; the raw tensors follow."""

MAX_FAILURE_BYTES = 64 * 1024

MAX_IDLE = 100
IDLE_S = 30.0
"""Connections that wait for the next request, and how long: shorter than what proxies commonly keep them for."""

# Triton says "not ready" with 400, and with 503 while it comes up.
READY_STATUSES = (200, 400, 503)

TIMEOUTS = (httpcore.TimeoutException, httpx.TimeoutException, TimeoutError)
BROKEN = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpx.HTTPError,
    httpx.InvalidURL,
    OSError,  # of TLS, once the handshake is done
)


def base_headers(connection: Connection) -> dict[str, str]:
    return {
        "User-Agent": f"cutaway/{__version__}",
        # Triton would otherwise compress PNGs once more, for ten times the milliseconds and no bytes less.
        "Accept-Encoding": "identity",
        **connection.headers,
    }


def base_url(connection: Connection) -> str:
    address = connection.address
    return f"{address.scheme}://{address.host}:{address.port}"


def ssl_context_of(connection: Connection) -> ssl.SSLContext:
    """
    Raises:
        OSError, ValueError: a certificate's file cannot be read.
    """
    if not connection.encrypted:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not used, and quicker than reading the public authorities
    return connection.tls.context() if connection.tls is not None else ssl.create_default_context()


def model_path(connection: Connection, model: str, what: str = "") -> str:
    return f"{connection.address.path}/v2/models/{quote(model, safe='')}{what}"


def ready_path(connection: Connection) -> str:
    return f"{connection.address.path}/v2/health/ready"


QUEUE_TIMEOUT_FACTOR = 1.1
"""Triton does not see that a caller over HTTP has gone, so it is told how long the request may wait in its queue: a
little longer than the caller does, who shall be told by the client's own clock."""


def message_of(request: InferRequest, headers: Mapping[str, str]) -> tuple[tuple[bytes, ...], dict[str, str]]:
    """The body in pieces, and the headers."""
    raw: list[bytes] = []
    inputs: list[dict[str, Any]] = []
    for each in (InputTensor("image", request.image),) if request.inputs is None else request.inputs:
        described, parts = _input_of(each)
        if request.region:
            n_bytes = described["parameters"]["binary_data_size"]
            described["parameters"] = {"shared_memory_region": request.region, "shared_memory_byte_size": n_bytes}
        else:
            raw += parts
        inputs.append(described)
    parameters = {**request.parameters, "timeout": round(request.timeout_s * QUEUE_TIMEOUT_FACTOR * 1e6)}
    if (part := request.sequence) is not None:
        parameters |= {"sequence_id": part.id, "sequence_start": part.begins, "sequence_end": part.ends}
    head = json.dumps(
        {
            "id": request.request_id,
            "parameters": parameters,
            "inputs": inputs,
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs],
        }
    ).encode()
    return (head, *raw), {
        **headers,
        JSON_LENGTH: str(len(head)),
        "Content-Length": str(len(head) + sum(map(len, raw))),
        "Content-Type": "application/octet-stream",
    }


def _input_of(tensor: InputTensor) -> tuple[dict[str, Any], tuple[bytes, ...]]:
    """What the header says of an input, and its bytes in pieces."""
    raw: tuple[bytes, ...]
    if isinstance(tensor.value, bytes):
        datatype, shape, raw = "BYTES", [1], (struct.pack("<I", len(tensor.value)), tensor.value)
    else:
        datatype, shape, raw = "UINT8", list(tensor.value.shape), (tensor.value.tobytes(),)
    size = {"binary_data_size": sum(map(len, raw))}
    return {"name": tensor.name, "datatype": datatype, "shape": shape, "parameters": size}, raw


def memory_path(connection: Connection, kind: MemoryKind, what: str, name: str = "") -> str:
    """Where a server is told of shared memory: `what` is "register", "unregister" or "status"."""
    region = f"/region/{quote(name, safe='')}" if name else ""
    return f"{connection.address.path}/v2/{kind}sharedmemory{region}/{what}"


def registering_of(region: MemoryRegion) -> bytes:
    """The body that registers a region."""
    if region.kind == "system":
        form: dict[str, Any] = {"key": region.key, "offset": 0, "byte_size": region.n_bytes}
    else:
        handle = {"b64": region.handle.decode("ascii")}
        form = {"raw_handle": handle, "device_id": region.device_id, "byte_size": region.n_bytes}
    return json.dumps(form).encode()


def registered_of(body: bytes, address: str) -> list[str]:
    """Names of the regions in a server's list of them.

    Raises:
        ServerRefused: it is no Triton's answer.
    """
    try:
        return [str(entry["name"]) for entry in json.loads(body)]
    except (ValueError, RecursionError, TypeError, KeyError):
        raise no_triton(address, "JSON that lists no shared memory") from None


class Body:
    """An answer's body as far as it came."""

    def __init__(self, response: httpx.Response, expected: tuple[int, ...]) -> None:
        self._status = response.status_code
        self._max_bytes = MAX_ANSWER_BYTES if self._status in expected else MAX_FAILURE_BYTES
        self.data = bytearray()

    def add(self, part: bytes) -> bool:
        """Take a part; True where no more is wanted.

        Raises:
            InferenceError: more than any answer has.
        """
        self.data += part
        if len(self.data) <= self._max_bytes:
            return False
        if self._status == 200:
            raise malformed(f"it has more than {self._max_bytes:,} bytes")
        return True


def failure_of(response: httpx.Response, body: bytes, address: str, elapsed_s: float) -> CutawayError:
    """The error for an answer with an unexpected status."""
    code = response.status_code
    status = STATUS_OF_HTTP.get(code, "UNKNOWN")
    if status == "UNKNOWN" and not 500 <= code <= 599:
        return no_triton(address, f"HTTP {code}")
    return error_of(
        status,
        http_message(body) or f"HTTP {code}",
        address=address,
        elapsed_s=elapsed_s,
        retry_after_s=parse_retry_after(response.headers.get("Retry-After")),
    )


def broken_of(error: Exception, address: str, elapsed_s: float, timeout_s: float) -> CutawayError:
    """The error for an exchange that failed underway.

    Args:
        error: one of :data:`TIMEOUTS` or :data:`BROKEN`.
        elapsed_s: seconds since it began.
        timeout_s: seconds that it had.
    """
    words = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, TIMEOUTS):
        if isinstance(error, (httpcore.ConnectTimeout, httpx.ConnectTimeout)) and elapsed_s < 0.99 * timeout_s:
            return ServerUnavailable(f"{address} cannot be reached within {limits.CONNECT_TIMEOUT_S:.0f} s.")
        return timed_out(address, elapsed_s)
    told = _tls_refusal(error, address)
    if told is not None:
        return told
    if isinstance(error, (httpcore.ConnectError, httpx.ConnectError)):
        return ServerUnavailable(f"{address} cannot be reached: {words}.")
    if words.startswith("illegal "):  # of h11, about the first line: nothing that is a web server sends that
        return no_triton(address, words)
    return ServerUnavailable(f"{address} broke the connection: {words}.")


def _tls_refusal(error: BaseException, address: str) -> CutawayError | None:
    """The refusal behind a failed exchange; a connection that was merely closed may be a server that starts."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return untrusted(address, str(cause.verify_message).rstrip("."))
        reason = str(getattr(cause, "reason", "")) if isinstance(cause, ssl.SSLError) else ""
        if "ALERT" in reason and "INTERNAL_ERROR" not in reason:
            return refused(f"{address} refuses the connection: {reason}.", "Check the client certificate.")
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return no_triton(address, reason)
        cause = cause.__cause__ or cause.__context__
    return None


def tensors_of(headers: Mapping[str, str], body: bytes, address: str) -> dict[str, Tensor]:
    """
    Raises:
        InferenceError: they make no sense.
        ServerRefused: it is no Triton's answer.
    """
    written = headers.get(JSON_LENGTH, str(len(body)))
    # No longer than any length that there can be: int() refuses thousands of digits in its own way.
    length = int(written) if written.isascii() and written.isdigit() and len(written) < 20 else -1
    if not 0 <= length <= len(body):
        raise malformed("the length of its header is impossible")
    head = _json(body[:length], address)
    outputs = head.get("outputs")
    if not isinstance(outputs, list):
        raise no_triton(address, "JSON without outputs")
    view, position = memoryview(body), length
    tensors: dict[str, Tensor] = {}
    for output in outputs:
        name, datatype, shape, size = _described(output)
        if size > len(body) - position:
            raise malformed(f"output {name!r} is cut off")
        tensors[name] = tensor(name, datatype, shape, view[position : position + size])
        position += size
    return tensors


def model_of(body: bytes, address: str) -> ModelInfo:
    """What a ready model's metadata say.

    Raises:
        ServerRefused: it is no Triton's answer.
    """
    head = _json(body, address)
    try:
        return ModelInfo(
            name=str(head["name"]),
            versions=tuple(map(str, head.get("versions", ()))),
            state="READY",
            platform=str(head.get("platform", "")),
            inputs=_infos(head.get("inputs", ())),
            outputs=_infos(head.get("outputs", ())),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise no_triton(address, "JSON that describes no model") from None


def _infos(entries: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(str(entry["name"]), str(entry["datatype"]), tuple(map(int, entry["shape"]))) for entry in entries
    )


def _json(body: bytes, address: str) -> dict[str, Any]:
    try:
        head = json.loads(body)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise no_triton(address, "no JSON")
    return head


def _described(output: Any) -> tuple[str, str, list[int], int]:
    parameters = output.get("parameters") if isinstance(output, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise malformed("an output is not binary")
    name, datatype, shape = output.get("name"), output.get("datatype"), output.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(shape, list):
        raise malformed("an output is not described")
    return name, datatype, shape, size
