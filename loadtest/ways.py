"""The two ways to the server, on bare tritonclient.

The SDK would add more than it takes away here: it refuses bad pictures before they are sent, repeats what failed,
lets a failing server rest, and works in threads, while Locust's users are greenlets. What it knows of errors is used.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc
import tritonclient.http
from cutaway.contract.errors import CutawayError
from cutaway.transports.failures import STATUS_OF_HTTP, error_of
from tritonclient.utils import InferenceServerException

from loadtest.scenarios import SERVED, Ask

WRONG_ID = "WRONG_ID"
"""Instead of an error code: the answer bears the id of another request."""
NOT_SENT = "NOT_SENT"
"""Instead of an error code: the run was over before there was room to send it (`--max-in-flight`)."""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        code: `SERVED`, an error code of Cutaway, `WRONG_ID` or `NOT_SENT`.
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
        return sum(len(file) for name in ("images", "jpeg") for file in self.outputs.get(name, ()))


class Stream:
    """The frames of one user, which Triton knows by a correlation id."""

    def __init__(self) -> None:
        self._id = 0

    def follow(self, ask: Ask, send: Callable[[dict[str, Any]], Reply]) -> Reply:
        """Send a request; for a frame, with what says whose it is. After a frame that failed a stream begins anew."""
        if not ask.framed:
            return send({})
        begins = not self._id
        self._id = self._id or random.getrandbits(63) + 1
        reply = send({"sequence_id": self._id, "sequence_start": begins})
        if reply.code != SERVED:
            self._id = 0
        return reply


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
        self._stream = Stream()
        # Channels to the same address would share one connection; users are strangers to each other.
        own = ("grpc.use_local_subchannel_pool", 1)
        longest = ("grpc.max_receive_message_length", 2**31 - 1), ("grpc.max_send_message_length", 2**31 - 1)
        self._client = tritonclient.grpc.InferenceServerClient(address, channel_args=[own, *longest])

    def send(self, ask: Ask, request_id: str) -> Reply:
        return self._stream.follow(
            ask,
            lambda extra: _send(
                self._client,
                tritonclient.grpc,
                self._address,
                ask,
                request_id,
                {"client_timeout": self._timeout_s, **extra},
            ),
        )

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
        self._stream = Stream()
        self._client = tritonclient.http.InferenceServerClient(
            address, concurrency=connections, connection_timeout=timeout_s, network_timeout=timeout_s
        )

    def send(self, ask: Ask, request_id: str) -> Reply:
        return self._stream.follow(
            ask, lambda extra: _send(self._client, tritonclient.http, self._address, ask, request_id, extra)
        )

    def close(self) -> None:
        self._client.close()


def _send(client: Any, module: Any, address: str, ask: Ask, request_id: str, extra: dict[str, Any]) -> Reply:
    image = module.InferInput(ask.input, [1], "BYTES")
    image.set_data_from_numpy(np.array([ask.data], dtype=np.object_))
    outputs = [module.InferRequestedOutput(name) for name in ask.outputs]
    begun = time.monotonic()
    try:
        result = client.infer(
            ask.model, [image], outputs=outputs, request_id=request_id, parameters=dict(ask.parameters), **extra
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
