"""The Triton model ``ensemble_pipeline``: reads requests, calls `pipeline.run` and writes responses."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import serving
import triton_python_backend_utils as pb_utils
from cutaway.contract.errors import InvalidFormat, ProcessingTimeout, RequestCancelled
from cutaway.contract.limits import INPUT_LIMITS, PROCESSING_TIMEOUT_S
from cutaway.contract.options import parse_options
from metrics import Metrics
from numpy.typing import NDArray
from pipeline.pace import Pace
from pipeline.run import Answer, Models, run

DETECTOR = "yolov8_seg"
MATTER = "birefnet_trt"
OPENCV_THREADS = 2
RATIO_VARIABLE = "CUTAWAY_MAX_DECOMPRESSION_RATIO"


class TritonPythonModel:
    """One instance: a process that serves one picture at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        cv2.setNumThreads(min(OPENCV_THREADS, os.cpu_count() or 1))
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        self.matte_side_px = int(parameters["matte_side_px"])
        self.processing_timeout_s = float(parameters.get("processing_timeout_s", PROCESSING_TIMEOUT_S))
        self.device = parameters["device"]
        self.tensorrt = parameters.get("tensorrt") == "yes"
        versions = Path(args["model_repository"]).parent
        self.description = {
            "profile": parameters["profile"],
            "detector": {"name": DETECTOR, "version": _version(versions / DETECTOR)},
            "matte": {"name": MATTER, "version": _version(versions / MATTER), "side_px": self.matte_side_px},
        }
        self.whole_matte: dict[str, Any] | None = None
        if name := parameters.get("whole_matte"):
            side_px = int(parameters["whole_matte_side_px"])
            self.whole_matte = {"name": name, "version": _version(versions / name), "side_px": side_px}
        ratio = os.environ.get(RATIO_VARIABLE)
        self.max_decompression_ratio = float(ratio) if ratio else INPUT_LIMITS.max_decompression_ratio

        self.pace, self.whole_pace = Pace(), Pace()
        self.memory = serving.Memory()
        self.metrics = Metrics(args["model_instance_name"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses = [self._guarded(request) for request in requests]
        self.memory.give_back()
        return responses

    def finalize(self) -> None:
        self.metrics.close()

    def _guarded(self, request: Any) -> Any:
        if serving.is_canary(request):  # figures of small pictures of noise would hide those of callers' pictures
            return serving.guarded(request, self._respond)
        self.metrics.begin()
        return serving.guarded(request, self._respond, self.metrics.end)

    def _respond(self, request: Any) -> Any:
        options = parse_options(serving.parameters(request))
        deadline = _deadline_check(request, self.processing_timeout_s)
        wanted = set(request.requested_output_names())
        answer = run(
            _file(request),
            options,
            self._models(request, deadline),
            wants_images="images" in wanted,
            max_decompression_ratio=self.max_decompression_ratio,
            proceed=deadline,
            remaining_s=deadline.remaining_s,
        )
        response = pb_utils.InferenceResponse([tensor for tensor in _tensors(answer) if tensor.name() in wanted])
        if not serving.is_canary(request):
            self.metrics.end("OK", answer.report)
        return response

    def _models(self, request: Any, deadline: Deadline) -> Models:
        models = Models(
            lambda images: _detect(request, images, deadline.remaining_s()),
            lambda images: _matte(request, MATTER, images, deadline.remaining_s()),
            self.matte_side_px,
            self.description,
            self.device,
            self.tensorrt,
            self.pace,
        )
        if (whole := self.whole_matte) is None:
            return models
        others = replace(
            models,
            matter=lambda images: _matte(request, whole["name"], images, deadline.remaining_s()),
            matte_side_px=whole["side_px"],
            pace=self.whole_pace,
            description=self.description | {"matte": whole},
        )
        return replace(models, whole=others)


def _file(request: Any) -> bytes:
    elements = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
    if elements.size != 1 or not isinstance(elements[0], bytes):
        raise InvalidFormat(
            f"One encoded file is expected, {elements.size} came.",
            details={"supported": list(INPUT_LIMITS.formats), "received": f"{elements.size} elements"},
        )
    return bytes(elements[0])


def _tensors(answer: Answer) -> list[Any]:
    # Objects, because np.bytes_ drops zero bytes at a file's end.
    return [
        pb_utils.Tensor("images", np.array([*answer.images, None], np.object_)[:-1]),
        pb_utils.Tensor("boxes", answer.boxes),
        pb_utils.Tensor("scores", answer.scores),
        pb_utils.Tensor("report", np.array([json.dumps(answer.report, ensure_ascii=False).encode()], np.object_)),
    ]


class Deadline:
    """A request's deadline; to call it raises where it is exceeded, or the caller cancelled the request."""

    def __init__(self, request: Any, timeout_s: float) -> None:
        self._request, self._timeout_s, self._started = request, timeout_s, time.monotonic()
        self._elapsed_s = 0.0

    def __call__(self) -> None:
        if self._request.is_cancelled():
            raise RequestCancelled("The caller cancelled the request.")
        self._elapsed_s = time.monotonic() - self._started
        if self._elapsed_s > self._timeout_s:
            raise ProcessingTimeout(
                f"The picture took more than {self._timeout_s:g} s.",
                details={"elapsed_seconds": round(self._elapsed_s, 1)},
            )

    def remaining_s(self) -> float:
        """Seconds until the deadline, at the last check."""
        return self._timeout_s - self._elapsed_s


def _deadline_check(request: Any, timeout_s: float) -> Deadline:
    return Deadline(request, timeout_s)


def _detect(request: Any, images: NDArray[np.uint8], timeout_s: float) -> dict[str, NDArray[Any]]:
    return serving.call(request, DETECTOR, images, serving.DETECTOR_OUTPUTS, timeout_s)


def _matte(request: Any, name: str, images: NDArray[np.uint8], timeout_s: float) -> NDArray[np.uint8]:
    return serving.call(request, name, images, ("alphas",), timeout_s)["alphas"]


def _version(folder: Path) -> str:
    """The version that Triton serves by default: the highest one. "" where the folder cannot be read."""
    try:
        versions = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and int(entry.name)]
    except OSError:
        return ""
    return str(max(versions, default=""))
