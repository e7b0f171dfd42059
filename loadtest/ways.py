"""The two ways to the server, on bare tritonclient, and forms to the HTTP service.

The SDK would hide what is looked for here: it refuses bad pictures before they are sent, retries what failed, opens a
circuit breaker, and works in threads, while Locust's users are greenlets.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
import urllib3
from cutaway.contract import errors
from tritonclient.utils import InferenceServerException

from loadtest.scenarios import SERVED, Ask

WRONG_ID = "WRONG_ID"
"""Instead of an error code: the answer bears the id of another request."""
NOT_SENT = "NOT_SENT"
"""Instead of an error code: the run was over before there was room to send it (`--max-in-flight`)."""
FULL_QUEUE = ("exceeds maximum queue size", "request timeout expired")
"""Triton's own words where it sheds load."""
GRPC_OPTIONS = [
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.max_send_message_length", 2**31 - 1),
    # Channels to the same address would share one connection; users are strangers to each other.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Reply:
    """What came back: tritonclient's outputs by name and the answer's report, or an error's message and code, which is
    one of Cutaway's, a status of gRPC or HTTP, `WRONG_ID` or `NOT_SENT`."""

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


class Way:
    """A connection to one server.

    Args:
        name: "gRPC", one channel for any number of requests at once, or "HTTP".
        address: host:port.
        timeout_s: for each request.
        connections: of HTTP: more requests at once wait for one of them.
    """

    def __init__(self, name: str, address: str, timeout_s: float = 60.0, connections: int = 1) -> None:
        self.name, self._stream = name, 0
        self._module: Any = tritonclient.grpc if name == "gRPC" else tritonclient.http
        self._address, self._forms = address, urllib3.PoolManager(timeout=timeout_s, retries=False, maxsize=connections)
        self._limits: dict[str, Any] = {"client_timeout": timeout_s} if name == "gRPC" else {}
        self._client = (
            tritonclient.grpc.InferenceServerClient(address, channel_args=GRPC_OPTIONS)
            if name == "gRPC"
            else tritonclient.http.InferenceServerClient(
                address, concurrency=connections, connection_timeout=timeout_s, network_timeout=timeout_s
            )
        )

    def close(self) -> None:
        self._client.close()

    def send(self, ask: Ask, request_id: str) -> Reply:
        """Send a request; a frame belongs to the stream of this connection, which begins anew after one that failed."""
        if ask.path:
            return self._post(ask)
        if not ask.framed:
            return self._infer(ask, request_id)
        begins = not self._stream
        self._stream = self._stream or random.getrandbits(63) + 1
        reply = self._infer(ask, request_id, sequence_id=self._stream, sequence_start=begins)
        if reply.code != SERVED:
            self._stream = 0
        return reply

    def _infer(self, ask: Ask, request_id: str, **sequence: Any) -> Reply:
        image = self._module.InferInput(ask.input, [1], "BYTES")
        image.set_data_from_numpy(np.array([ask.data], dtype=np.object_))
        outputs = [self._module.InferRequestedOutput(name) for name in ask.outputs]
        options = {"parameters": dict(ask.parameters), **self._limits, **sequence}
        try:
            result = self._client.infer(ask.model, [image], outputs=outputs, request_id=request_id, **options)
        except InferenceServerException as failure:
            return _refused(str(failure.status() or "UNKNOWN").removeprefix("StatusCode."), failure.message())
        except TimeoutError as failure:
            return _refused("DEADLINE_EXCEEDED", str(failure))
        except OSError as failure:
            return _refused("UNAVAILABLE", str(failure))
        said = result.get_response()
        if (said["id"] if isinstance(said, dict) else said.id) != request_id:
            return Reply(WRONG_ID, f"asked with {request_id}, answered: {said}")
        arrays = {name: result.as_numpy(name) for name in ask.outputs}
        return Reply(outputs=arrays, report=json.loads(arrays["report"][0]))

    def _post(self, ask: Ask) -> Reply:
        """A form to the HTTP service."""
        name = "photo.png" if ask.data.startswith(b"\x89PNG") else "photo.jpg"
        fields: dict[str, Any] = {"image": (name, ask.data), **ask.parameters}
        try:
            answer = self._forms.request("POST", f"http://{self._address}{ask.path}", fields=fields)
        except urllib3.exceptions.TimeoutError as failure:
            return _refused("DEADLINE_EXCEEDED", str(failure))
        except urllib3.exceptions.HTTPError as failure:
            return _refused("UNAVAILABLE", str(failure))
        if answer.status == 200:
            total_ms = answer.headers.get("X-Processing-Time-Ms")
            report = {"milliseconds": {"total": float(total_ms)}} if total_ms else answer.json()
            return Reply(outputs={"images": [answer.data]}, report=report)
        try:
            said = answer.json()
            error = said.get("error") or {"code": said["error_code"], "message": said["detail"]}
            return Reply(error["code"], error["message"])
        except (ValueError, KeyError):
            return Reply(str(answer.status), answer.data[:200].decode(errors="replace"))


def _refused(status: str, message: str) -> Reply:
    """Cutaway's own errors travel as JSON in the message; Triton's full queue has words; the rest keeps its status."""
    error = errors.from_json(message)
    if error is not None:
        return Reply(error.code, error.message)
    if any(words in message.lower() for words in FULL_QUEUE):
        return Reply(errors.Overloaded.code, message)
    return Reply(status, message)
