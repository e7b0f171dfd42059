"""A stand-in for a Cutaway server on loopback: answers or fails as it is told, and keeps what it was asked."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from cutaway.contract.errors import CutawayError
from tritonclient.grpc import service_pb2

from tests.client import peers
from tests.client.answers import PNG, REPORT
from tests.client.hosted.peers import Peer, Received, Reply

HTTP_STATUS = {"INVALID_ARGUMENT": 400, "UNAVAILABLE": 503, "INTERNAL": 500, "UNAUTHENTICATED": 401}

PERSON = (40.0, 24.0, 120.0, 72.0)
"""Around the ellipse of :func:`tests.client.hosted.peers.picture`."""


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        outputs: the names of those asked for; "images" among them for a cut.
    """

    request_id: str
    outputs: tuple[str, ...]

    @property
    def detects(self) -> bool:
        return "images" not in self.outputs


@dataclass(frozen=True)
class Failure:
    """A failed call: a gRPC status by name, sent as its HTTP status over HTTP."""

    status: str
    message: str


def failing(error: CutawayError) -> Failure:
    """What a server of ours sends for an error of its own."""
    status = "INVALID_ARGUMENT" if isinstance(error, ValueError) else "INTERNAL"
    return Failure("UNAVAILABLE" if isinstance(error, ConnectionError) else status, error.to_json())


DOWN = Failure("UNAVAILABLE", "the house is on fire")

Script = Callable[[Asked], "Failure | None"]
"""What becomes of a request; None for a good answer."""


@dataclass
class OwnServer:
    """What it does, and what it was asked.

    Attributes:
        script: may be exchanged while it runs.
        url: its address.
        asked: all requests, oldest first.
    """

    script: Script
    url: str = ""
    asked: list[Asked] = field(default_factory=list)

    def answer(self, asked: Asked) -> Failure | list[tuple[str, str, list[int], bytes]]:
        self.asked.append(asked)
        failure = self.script(asked)
        return failure if failure is not None else [each for each in ANSWER if each[0] in asked.outputs]


@contextmanager
def own_server(scheme: str, script: Script | Failure | None = None) -> Iterator[OwnServer]:
    """One that speaks "grpc" or "http"."""
    server = OwnServer(script if callable(script) else lambda _: script)
    if scheme == "http":
        with Peer(lambda received: _over_http(server, received)) as peer:
            server.url = peer.base_url
            yield server
    else:
        with peers.grpc_peer(lambda request, context: over_grpc(server, request, context)) as port:
            server.url = f"grpc://127.0.0.1:{port}"
            yield server


def over_grpc(server: OwnServer, request: Any, context: grpc.ServicerContext) -> Any:
    """Answer a ModelInfer as the server would."""
    found = server.answer(Asked(request.id, tuple(output.name for output in request.outputs)))
    if isinstance(found, Failure):
        context.abort(grpc.StatusCode[found.status], found.message)
    response = service_pb2.ModelInferResponse(id=request.id)
    for name, datatype, shape, raw in found:  # type: ignore[misc]
        response.outputs.add(name=name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(raw)
    return response


def _over_http(server: OwnServer, received: Received) -> Reply:
    form = json.loads(received.body[: int(received.headers["inference-header-content-length"])])
    found = server.answer(Asked(form["id"], tuple(output["name"] for output in form["outputs"])))
    if isinstance(found, Failure):
        body = json.dumps({"error": found.message}).encode()
        return Reply(HTTP_STATUS[found.status], body, {"Content-Type": "application/json"})
    described = [peers.output(name, datatype, shape, len(raw)) for name, datatype, shape, raw in found]
    head = json.dumps({"model_name": "ensemble_pipeline", "outputs": described}).encode()
    raw = b"".join(each[3] for each in found)
    return Reply(body=head + raw, headers={"Inference-Header-Content-Length": str(len(head))})


def _element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _report() -> bytes:
    person = {"id": 0, "box": list(PERSON), "confidence": 0.9}
    cutout = {**REPORT["cutouts"][0], "people": [0], "box": list(PERSON)}
    return json.dumps({**REPORT, "people": [person], "cutouts": [cutout], "warnings": []}).encode()


ANSWER = [
    ("images", "BYTES", [1], _element(PNG)),
    ("boxes", "FP32", [1, 4], np.array(PERSON, "<f4").tobytes()),
    ("scores", "FP32", [1], np.array([0.9], "<f4").tobytes()),
    ("report", "BYTES", [1], _element(_report())),
]
"""One person, one cut-out."""
