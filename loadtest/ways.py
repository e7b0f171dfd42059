"""The two ways to the server, on bare tritonclient.

The SDK would add more than it takes away here: it refuses bad pictures before they are sent, repeats what failed,
lets a failing server rest, and works in threads, while Locust's users are greenlets. What it knows of errors is used.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc
import tritonclient.http
from cutaway.errors import CutawayError
from cutaway.wire import STATUS_OF_HTTP, error_of
from tritonclient.utils import InferenceServerException

from loadtest.scenarios import SERVED, Ask

PIPELINE = "ensemble_pipeline"
WRONG_ID = "WRONG_ID"
"""Instead of an error code: the answer bears the id of another request."""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        code: `SERVED`, an error code of Cutaway, or `WRONG_ID`.
        message: of the error.
        outputs: by name, as tritonclient gives them.
        report: the answer's own.
    """

    code: str = SERVED
    message: str = ""
    outputs: dict[str, Any] = field(default_factory=dict, repr=False)
    report: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def stages_ms(self) -> dict[str, float]:
        return dict(self.report.get("milliseconds", {}))

    @property
    def answered_bytes(self) -> int:
        images = self.outputs.get("images")
        return 0 if images is None else sum(len(image) for image in images)


class Way(Protocol):
    """A connection to one server."""

    name: str

    def send(self, ask: Ask, request_id: str) -> Reply: ...
    def close(self) -> None: ...


class Grpc:
    """gRPC; one channel for any number of requests at once.

    Args:
        address: host:port.
        timeout_s: for each request.
    """

    name = "gRPC"

    def __init__(self, address: str, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        # Channels to the same address would share one connection; users are strangers to each other.
        own = ("grpc.use_local_subchannel_pool", 1)
        longest = ("grpc.max_receive_message_length", 2**31 - 1), ("grpc.max_send_message_length", 2**31 - 1)
        self._client = tritonclient.grpc.InferenceServerClient(address, channel_args=[own, *longest])

    def send(self, ask: Ask, request_id: str) -> Reply:
        extra = {"client_timeout": self._timeout_s}
        return _send(self._client, tritonclient.grpc, self._address, ask, request_id, extra)

    def close(self) -> None:
        self._client.close()


class Http:
    """HTTP/1.1.

    Args:
        address: host:port.
        timeout_s: for each request.
        connections: requests at once; more wait for one of them.
    """

    name = "HTTP"

    def __init__(self, address: str, timeout_s: float, connections: int = 1) -> None:
        self._address = address
        self._client = tritonclient.http.InferenceServerClient(
            address, concurrency=connections, connection_timeout=timeout_s, network_timeout=timeout_s
        )

    def send(self, ask: Ask, request_id: str) -> Reply:
        return _send(self._client, tritonclient.http, self._address, ask, request_id, {})

    def close(self) -> None:
        self._client.close()


def _send(client: Any, module: Any, address: str, ask: Ask, request_id: str, extra: dict[str, Any]) -> Reply:
    image = module.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([ask.data], dtype=np.object_))
    outputs = [module.InferRequestedOutput(name) for name in ask.outputs]
    begun = time.monotonic()
    try:
        result = client.infer(
            PIPELINE, [image], outputs=outputs, request_id=request_id, parameters=dict(ask.parameters), **extra
        )
    except InferenceServerException as failure:
        error = error_of(_status(failure), failure.message(), address=address, elapsed_s=time.monotonic() - begun)
        return _refused(error)
    except TimeoutError as failure:
        elapsed_s = time.monotonic() - begun
        return _refused(error_of("DEADLINE_EXCEEDED", str(failure), address=address, elapsed_s=elapsed_s))
    except OSError as failure:
        return _refused(error_of("UNAVAILABLE", str(failure), address=address, elapsed_s=time.monotonic() - begun))
    said = result.get_response()
    if (said["id"] if isinstance(said, dict) else said.id) != request_id:
        return Reply(WRONG_ID, f"asked with {request_id}, answered: {said}")
    arrays = {name: result.as_numpy(name) for name in ask.outputs}
    return Reply(outputs=arrays, report=json.loads(arrays["report"][0]))


def _status(failure: InferenceServerException) -> str:
    """The gRPC status by name; HTTP's numbers are translated."""
    said = str(failure.status() or "UNKNOWN").removeprefix("StatusCode.")
    return STATUS_OF_HTTP.get(int(said), "UNKNOWN") if said.isdigit() else said


def _refused(error: CutawayError) -> Reply:
    return Reply(error.code, error.message)
