"""Triton Python backend: an ONNX network in place of a TensorRT plan, with the same inputs and outputs.

Triton's batcher hands `execute` the requests that waited together. They are stacked along the batch dimension into
one run of the network, and the answer is split again, as the TensorRT backend would do it.

Parameters, written by `runtime.compose`:
    device: "cpu" or "cuda".
    threads: how many threads one run uses on the CPU.
    sha256: of the file that may be loaded; another one is not, also when this process is started anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

SPIN_US = 20
"""How long a thread that ran out of work keeps looking for more before it sleeps. Long enough for the gap between two
operators (waking it costs a twentieth of a run), too short to take a core from the pipeline's decoding and encoding or
from the other network, as ONNX Runtime's own milliseconds do (a fifth fewer pictures per second)."""
SPIN_LIMIT_KNOWN = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= (1, 27)
"""Older versions know no limit; there threads sleep at once."""

Arrays = dict[str, NDArray[Any]]


class TritonPythonModel:
    """One network in one process."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._name = str(args["model_name"])
        self._inputs = [str(tensor["name"]) for tensor in config["input"]]
        self._outputs = [str(tensor["name"]) for tensor in config["output"]]
        check_file(path, parameters["sha256"])
        self._session = open_session(path, parameters["device"], int(parameters["threads"]))
        # Once more after it was read: the file may change at any moment.
        check_file(path, parameters["sha256"])
        provider = self._session.get_providers()[0]
        pb_utils.Logger.log_info(f"{self._name}: ONNX Runtime {ort.__version__}, {provider}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One answer per request, in their order; a request that fails does not hurt those beside it."""
        answers: dict[int, Any] = {}
        batch: list[tuple[int, Arrays]] = []
        for index, request in enumerate(requests):
            if request.is_cancelled():
                answers[index] = _error("the caller gave the request up", pb_utils.TritonError.CANCELLED)
                continue
            try:
                batch.append((index, self._read(request)))
            except Exception as error:  # whatever is wrong with one request must not end the others
                answers[index] = _error(f"{self._name} cannot read its input: {error}")
        wanted = sorted({str(name) for request in requests for name in request.requested_output_names()})
        for index, arrays in self._run(batch, wanted):
            if isinstance(arrays, Exception):
                pb_utils.Logger.log_error(f"{self._name}: {arrays}")
                answers[index] = _error(f"{self._name} failed: {arrays}")
            else:
                names = [name for name in requests[index].requested_output_names() if name in arrays]
                answers[index] = pb_utils.InferenceResponse([pb_utils.Tensor(name, arrays[name]) for name in names])
        return [answers[index] for index in range(len(requests))]

    def _read(self, request: Any) -> Arrays:
        """The inputs of one request by name. Shape: (B, …) with B the request's own batch."""
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}

    def _run(self, batch: list[tuple[int, Arrays]], wanted: list[str]) -> list[tuple[int, Arrays | Exception]]:
        """The outputs of each request. If the stacked run fails, each runs alone, so that one cannot fail all."""
        if not batch:
            return []
        try:
            stacked = run_stacked(self._session, [arrays for _, arrays in batch], wanted)
        except Exception as error:  # ONNX Runtime raises types of its own for each of its status codes
            if len(batch) == 1:
                return [(batch[0][0], error)]
            return [result for one in batch for result in self._run([one], wanted)]
        return [(index, arrays) for (index, _), arrays in zip(batch, stacked, strict=True)]

    def finalize(self) -> None:
        del self._session


def check_file(path: Path, sha256: str) -> None:
    """A network's file is the one that the server was started with.

    Raises:
        RuntimeError: it has changed since.
    """
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
            return
    raise RuntimeError(
        f"the weight file {path.resolve()} has changed since the server was started; restore it, or restart the server"
    )


def open_session(path: Path, device: str, threads: int) -> ort.InferenceSession:
    """A session on the device asked for; never silently on another.

    Raises:
        RuntimeError: when CUDA was asked for and ONNX Runtime did not take it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # The networks are one chain of operators: nothing runs beside another.
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    if SPIN_LIMIT_KNOWN:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    else:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Plans are kept for each size of a batch, and an arena only ever grows. The process's own allocator, set up by
    # runtime.process to keep what the next run needs, is as fast in half the memory.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    if device != "cuda":
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # CUDA and cuDNN may have come as Python packages, where the system's loader does not look.
    ort.preload_dlls()
    # The batch varies from 1 to 8: a search for the fastest convolution at each size would cost seconds, and memory
    # that doubles when it grows would soon hold what no batch needs.
    cuda = (
        "CUDAExecutionProvider",
        {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
    )
    session = ort.InferenceSession(path, options, providers=[cuda, "CPUExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError(f"{path.name} was to run with CUDA, and ONNX Runtime came up without it")
    return session


def run_stacked(session: ort.InferenceSession, requests: list[Arrays], wanted: list[str]) -> list[Arrays]:
    """One run for several requests.

    Args:
        session: the network.
        requests: inputs by name, each (B, …) with a batch of its own.
        wanted: names of the outputs to compute.

    Returns:
        Outputs by name for each request, each (B, …), contiguous.
    """
    if len(requests) == 1:
        outputs = session.run(wanted, requests[0])
        return [dict(zip(wanted, outputs, strict=True))]
    stacked = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    sizes = [len(next(iter(request.values()))) for request in requests]
    bounds = np.cumsum([0, *sizes])
    outputs = session.run(wanted, stacked)
    return [
        {name: array[start:end] for name, array in zip(wanted, outputs, strict=True)}
        for start, end in itertools.pairwise(bounds)
    ]


def _error(message: str, code: Any = None) -> Any:
    """A response that carries an error and no outputs."""
    if code is None:
        code = pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message, code))
