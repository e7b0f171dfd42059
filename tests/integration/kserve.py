"""tritonclient as any user of Triton has it: no Cutaway code between the test and the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from runtime.health import statistics

PIPELINE = "ensemble_pipeline"
ALL_OUTPUTS = ("images", "boxes", "scores", "report")
PROTOCOLS = ("http", "grpc")
REFUSED = {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}
"""The status for whatever the caller did."""


@dataclass(frozen=True)
class Answer:
    """What came back: outputs, or a status and the error form.

    Attributes:
        status: "" for a result, else as tritonclient tells it: "400", "StatusCode.INVALID_ARGUMENT".
        error: the JSON error form.
        outputs: arrays by name, the report as JSON values.
    """

    status: str = ""
    error: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> str:
        return str(self.error.get("code", ""))


Ask = Callable[..., Answer]


@contextmanager
def asking(server: Any, protocol: str) -> Iterator[Ask]:
    """A function ``ask(data, parameters, outputs=…)`` over one connection of the protocol."""
    if protocol == "grpc":
        library, client = tritonclient.grpc, tritonclient.grpc.InferenceServerClient(server.grpc_address)
    else:
        library, client = tritonclient.http, tritonclient.http.InferenceServerClient(server.http_address)

    def ask(data: bytes, parameters: Mapping[str, Any] | None = None, outputs: Sequence[str] = ALL_OUTPUTS) -> Answer:
        image = library.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([data], dtype=np.object_))
        try:
            result = client.infer(
                PIPELINE,
                [image],
                outputs=[library.InferRequestedOutput(name) for name in outputs],
                parameters=dict(parameters or {}),
            )
        except InferenceServerException as error:
            return Answer(str(error.status()), json.loads(error.message()))
        found = {name: result.as_numpy(name) for name in outputs}
        if "report" in found:
            found["report"] = json.loads(found["report"][0])
        return Answer(outputs=found)

    try:
        yield ask
    finally:
        client.close()


def runs_of(server: Any, model: str) -> int:
    """How many pictures a model has inferred since the server started."""
    return int(statistics(server.probe, model)["inference_count"])
