"""The Triton model ``stream_pipeline``: reads requests, calls :mod:`stream.run` and writes responses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import serving
import triton_python_backend_utils as pb_utils
from cutaway.contract.errors import InputError, InvalidFormat, InvalidOption, RequestCancelled, ServerUnavailable
from cutaway.contract.limits import DETECTOR_SIDE_PX, STREAM_IDLE_S, STREAM_LIMITS, STREAM_TIMEOUT_S
from cutaway.contract.options import parse_stream_options
from numpy.typing import NDArray

from stream.fit import Fit, free, square
from stream.run import Answer, run
from stream.states import State, States, begin
from stream.tuning import GIVES_WAY_S, STREAMS_MAX

OPENCV_THREADS = 1
"""A frame's own work takes milliseconds; a second thread would only compete with the network for a core."""


class TritonPythonModel:
    """One instance: a process that serves one frame at a time and has the states of its streams."""

    def initialize(self, args: Mapping[str, str]) -> None:
        cv2.setNumThreads(min(OPENCV_THREADS, os.cpu_count() or 1))
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._detector = parameters["detector"]
        self._device = parameters["device"]
        pixels = int(parameters["detector_pixels"])

        @lru_cache(maxsize=64)
        def fit_of(width: int, height: int) -> Fit:
            return free(width, height, pixels) if pixels else square(width, height, DETECTOR_SIDE_PX)

        self._fit_of = fit_of
        self._states = States(STREAMS_MAX, STREAM_IDLE_S, gives_way_s=GIVES_WAY_S)
        self._memory = serving.Memory()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses = [serving.guarded(request, self._respond) for request in requests]
        self._memory.give_back()
        return responses

    def _respond(self, request: Any) -> Any:
        stream, caller = int(_control(request, "stream")), serving.caller(request)
        begins, ends = bool(_control(request, "begins")), bool(_control(request, "ends"))
        try:
            given = _given(request)
            if given is None and ends:
                return pb_utils.InferenceResponse([])
            if given is None:
                raise InvalidFormat(
                    "A frame is missing.", details={"supported": ["frame", "file"], "received": "neither"}
                )
            return self._answer(request, given, self._state(request, stream, caller, begins, ends))
        except InputError:
            if begins:  # nothing is kept, and no place taken, for a stream that never had a frame
                self._states.drop(stream, caller)
            raise
        finally:
            if ends:
                self._states.drop(stream, caller)

    def _state(self, request: Any, stream: int, caller: str, begins: bool, ends: bool) -> State:
        """The stream's state; a new one at its start.

        A stream of a single frame is not kept and needs no place: health checks are such.

        Raises:
            InputError: an option or the background is invalid.
            Overloaded: it starts, and there are as many streams as the maximum.
            ServerUnavailable: the stream never started here, or was removed.
        """
        if begins and ends:
            return self._begun(request)
        if begins:
            return self._states.open(stream, lambda: self._begun(request), caller)
        state = self._states.get(stream, caller)
        if state is None:
            raise ServerUnavailable("The stream is not known here (any more): begin it anew.", retry_after=0.0)
        return state

    def _begun(self, request: Any) -> State:
        """A stream's state, from its first request.

        Raises:
            InputError: an option or the background is invalid.
        """
        options = parse_stream_options(serving.parameters(request))
        picture = _file(request, "background")
        if (picture is None) == options.background.transparent:  # which stands for the caller's own
            raise InvalidOption(
                "A picture for the background is missing."
                if picture is None
                else "A picture for the background came, and the option 'background' names something else.",
                details={"name": "background", "value": "picture", "allowed": "picture, together with one"},
            )
        return begin(options, picture)

    def _answer(self, request: Any, given: NDArray[np.uint8] | bytes, state: State) -> Any:
        wanted = set(request.requested_output_names())

        def detect(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
            if request.is_cancelled():
                raise RequestCancelled("The caller cancelled the request.")
            return serving.call(request, self._detector, images, serving.DETECTOR_OUTPUTS, STREAM_TIMEOUT_S)

        answer = run(given, state, detect, self._fit_of, wanted)
        answer.report["device"] = self._device
        return pb_utils.InferenceResponse(_tensors(answer, wanted))


def _control(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0]


def _given(request: Any) -> NDArray[np.uint8] | bytes | None:
    """The raw frame, the file, or None where there is neither.

    Raises:
        InvalidFormat: both came.
    """
    frame, file = pb_utils.get_input_tensor_by_name(request, "frame"), _file(request, "file")
    if frame is None:
        return file
    if file is not None:
        raise InvalidFormat("Two frames came.", details={"supported": ["frame", "file"], "received": "both"})
    array: NDArray[np.uint8] = frame.as_numpy()
    return array


def _file(request: Any, name: str) -> bytes | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    elements = tensor.as_numpy().reshape(-1)
    if elements.size != 1 or not isinstance(elements[0], bytes):
        raise InvalidFormat(
            f"One encoded file is expected, {elements.size} came.",
            details={"supported": list(STREAM_LIMITS.formats), "received": f"{elements.size} elements"},
        )
    return bytes(elements[0])


def _tensors(answer: Answer, wanted: set[str]) -> list[Any]:
    makers: dict[str, Callable[[], NDArray[Any]]] = {
        "frame": lambda: answer.frame,
        "jpeg": lambda: np.array([answer.jpeg, None], np.object_)[:1],
        "alpha": lambda: answer.alpha,
        "report": lambda: np.array([json.dumps(answer.report).encode()], np.object_),
    }
    return [pb_utils.Tensor(name, make()) for name, make in makers.items() if name in wanted]
