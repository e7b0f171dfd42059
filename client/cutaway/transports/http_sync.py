"""KServe-v2 over HTTP with binary tensors.

tritonclient's HTTP client belongs to one thread and bounds only single reads; this one is shared between threads and
keeps one deadline per call (:mod:`cutaway.transports.deadline`).
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpcore
import httpx

from cutaway import __version__
from cutaway.cancel import Cancel
from cutaway.errors import CutawayError, ServerUnavailable
from cutaway.transports.base import InferRequest
from cutaway.transports.connection import Connection
from cutaway.transports.deadline import DeadlineTransport, deadline
from cutaway.wire import (
    MAX_ANSWER_BYTES,
    STATUS_OF_HTTP,
    Tensor,
    error_of,
    http_message,
    malformed,
    tensor,
    timed_out,
)

JSON_LENGTH = "Inference-Header-Content-Length"
"""How many bytes of a body are JSON; the raw tensors follow."""

MAX_FAILURE_BYTES = 64 * 1024


class HttpTransport:
    """See :class:`cutaway.transports.base.Transport`."""

    def __init__(self, connection: Connection) -> None:
        address = connection.address
        self._address = str(address)
        self._path = f"{address.path}/v2"
        self._client = httpx.Client(
            transport=DeadlineTransport(),
            base_url=f"{address.scheme}://{address.host}:{address.port}",
            # Triton would otherwise compress PNGs once more, for ten times the milliseconds and no bytes less.
            headers={"User-Agent": f"cutaway/{__version__}", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(None),  # the deadline bounds every wait
        )

    def infer(self, request: InferRequest, cancel: Cancel | None = None) -> dict[str, Tensor]:
        head = json.dumps(
            {
                "id": request.request_id,
                "parameters": dict(request.parameters),
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "BYTES",
                        "shape": [1],
                        "parameters": {"binary_data_size": 4 + len(request.image)},
                    }
                ],
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs],
            }
        ).encode()
        status, headers, body = self._exchange(
            "POST",
            f"{self._path}/models/{quote(request.model, safe='')}/infer",
            request.timeout_s,
            content=iter((head, struct.pack("<I", len(request.image)), request.image)),
            headers={
                JSON_LENGTH: str(len(head)),
                "Content-Length": str(len(head) + 4 + len(request.image)),
                "Content-Type": "application/octet-stream",
            },
        )
        assert status == 200
        return _tensors(headers, body, self._address)

    def server_ready(self, timeout_s: float) -> bool:
        return self._ready(f"{self._path}/health/ready", timeout_s)

    def model_ready(self, model: str, timeout_s: float) -> bool:
        return self._ready(f"{self._path}/models/{quote(model, safe='')}/ready", timeout_s)

    def close(self) -> None:
        self._client.close()

    def _ready(self, path: str, timeout_s: float) -> bool:
        # Triton says "not ready" with 400, and with 503 while it comes up.
        status, _, _ = self._exchange("GET", path, timeout_s, expected=(200, 400, 503))
        return status == 200

    def _exchange(
        self, method: str, path: str, timeout_s: float, *, expected: tuple[int, ...] = (200,), **sent: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        started = time.monotonic()
        try:
            with deadline(timeout_s), self._client.stream(method, path, **sent) as response:
                limit = MAX_ANSWER_BYTES if response.status_code in expected else MAX_FAILURE_BYTES
                body = _read(response, limit)
        except (httpcore.TimeoutException, httpx.TimeoutException):
            raise timed_out(self._address, time.monotonic() - started) from None
        except httpcore.ConnectError as error:
            raise ServerUnavailable(f"{self._address} cannot be reached: {_words(error)}.") from None
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
            httpx.HTTPError,
        ) as error:
            raise ServerUnavailable(f"{self._address} broke the connection: {_words(error)}.") from None
        if response.status_code not in expected:
            raise self._failure(response, body, time.monotonic() - started)
        return response.status_code, response.headers, body

    def _failure(self, response: httpx.Response, body: bytes, elapsed_s: float) -> CutawayError:
        status = STATUS_OF_HTTP.get(response.status_code, "UNKNOWN")
        if status == "UNKNOWN" and not 500 <= response.status_code <= 599:
            return ServerUnavailable(
                f"{self._address} answers with HTTP {response.status_code}, which no Triton server does."
            )
        return error_of(
            status,
            http_message(body) or f"HTTP {response.status_code}",
            address=self._address,
            elapsed_s=elapsed_s,
            retry_after_s=_seconds(response.headers.get("Retry-After")),
        )


def _read(response: httpx.Response, max_bytes: int) -> bytes:
    body = bytearray()
    # Raw, not decompressed: compression is never asked for, and a folded answer would be a bomb of its own.
    for part in response.iter_raw():
        body += part
        if len(body) > max_bytes:
            if response.status_code == 200:
                raise malformed(f"it has more than {max_bytes:,} bytes")
            break
    return bytes(body)


def _tensors(headers: Mapping[str, str], body: bytes, address: str) -> dict[str, Tensor]:
    length = headers.get(JSON_LENGTH, str(len(body)))
    if not length.isascii() or not length.isdigit() or int(length) > len(body):
        raise malformed("the length of its header is impossible")
    try:
        head = json.loads(body[: int(length)])
    except (ValueError, RecursionError):
        raise ServerUnavailable(f"{address} answers, but not as a Triton server does.") from None
    outputs = head.get("outputs") if isinstance(head, dict) else None
    if not isinstance(outputs, list):
        raise ServerUnavailable(f"{address} answers, but not as a Triton server does.")
    view, position = memoryview(body), int(length)
    tensors: dict[str, Tensor] = {}
    for output in outputs:
        name, datatype, shape, size = _described(output)
        if size > len(body) - position:
            raise malformed(f"output {name!r} is cut off")
        tensors[name] = tensor(name, datatype, shape, view[position : position + size])
        position += size
    return tensors


def _described(output: Any) -> tuple[str, str, list[int], int]:
    parameters = output.get("parameters") if isinstance(output, dict) else None
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise malformed("an output is not binary")
    name, datatype, shape = output.get("name"), output.get("datatype"), output.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(shape, list):
        raise malformed("an output is not described")
    return name, datatype, shape, size


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; its other form, a date, is left alone."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 7 else None


def _words(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
