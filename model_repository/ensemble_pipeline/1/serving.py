"""Shared by the Python models: calls of a network inside the server, and errors as Triton responses."""

from __future__ import annotations

import ctypes
import json
import os
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cutaway.contract.errors import (
    CutawayError,
    GpuMemoryExhausted,
    InferenceError,
    InputError,
    Overloaded,
    ProcessingTimeout,
    RequestCancelled,
    ServerUnavailable,
    invalid_option,
)
from cutaway.contract.limits import MIB
from numpy.typing import NDArray

DETECTOR_OUTPUTS = ("boxes", "scores", "classes", "coefficients", "prototypes")

CALLER = "caller"
"""The request parameter in which the gate says who sends a request; it removes one that comes from outside."""
GATE_VARIABLE = "CUTAWAY_GATE"
"""Set to 1 where only the gate reaches Triton; without it anybody could send any `caller`."""
KEPT_BYTES = 192 * MIB
"""Beyond what a process had at its start: 12 megapixels work in so much, and the next picture takes it again."""
CANARY = "canary"
"""The id of the requests that check a server (`runtime/health.py`)."""
LOGGED_ID_CHARS = 128
"""Of a request's id, which may be as long as a request."""


class Memory:
    """Gives the memory of a huge picture back to the system; glibc would keep it for the next one of its size."""

    def __init__(self) -> None:
        self._trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._at_start_bytes = _own_bytes()

    def give_back(self) -> None:
        """To be called between requests; does nothing where little is held."""
        if self._trim is not None and _own_bytes() - self._at_start_bytes > KEPT_BYTES:
            self._trim(0)


def _own_bytes() -> int:
    """What this process has in memory alone."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def guarded(request: Any, respond: Callable[[Any], Any], failed: Callable[[str], None] = lambda _: None) -> Any:
    """The response to a request, or to its error, which does not affect the others of the batch.

    Args:
        failed: called with the code of an error.
    """
    error: CutawayError
    try:
        _request_id(request)
        return respond(request)
    except CutawayError as raised:
        error = raised
    except MemoryError:
        error = InferenceError("The picture needs more memory than there is.")
    except Exception:
        # Not handed on: Triton would send it with the paths of its traceback.
        pb_utils.Logger.log_error(
            f"request {_request_id(request)[:LOGGED_ID_CHARS]!r} failed\n{traceback.format_exc()}"
        )
        error = InferenceError("The pipeline failed.")
    failed(error.code)
    return failure(error)


def parameters(request: Any) -> dict[str, Any]:
    """The request's parameters but for `caller`.

    Raises:
        InvalidOption: they are no UTF-8.
    """
    try:
        given: dict[str, Any] = json.loads(request.parameters() or "{}")
    except UnicodeDecodeError:
        raise invalid_option("parameters", "no UTF-8", "text in UTF-8") from None
    given.pop(CALLER, None)
    return given


def caller(request: Any) -> str:
    """Who sent the request, as the gate says; "" where there is no gate."""
    if os.environ.get(GATE_VARIABLE) != "1":
        return ""
    try:
        return str(json.loads(request.parameters() or "{}").get(CALLER, ""))
    except UnicodeDecodeError:
        return ""


def is_canary(request: Any) -> bool:
    """Whether the request checks the server; a caller's with this id is left out of metrics, too, and harms nobody."""
    try:
        return _request_id(request) == CANARY
    except InputError:
        return False


def _request_id(request: Any) -> str:
    """The request's id.

    Raises:
        InvalidOption: it is no UTF-8.
    """
    try:
        return str(request.request_id())
    except UnicodeDecodeError:
        raise invalid_option("id", "no UTF-8", "text in UTF-8") from None


def call(
    request: Any, model: str, images: NDArray[np.uint8], outputs: Sequence[str], timeout_s: float
) -> dict[str, NDArray[Any]]:
    """Run a model on a batch within this server.

    Args:
        timeout_s: how long it may wait in the model's queue.

    Raises:
        ServiceError: it failed; the network's own message is in the log only.
    """
    inner = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor("images", images)],
        request_id=request.request_id(),
        # 0 is no timeout at all.
        timeout=max(1, round(timeout_s * 1e6)),
        trace=request.trace(),
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = inner.exec()
    if response.has_error():
        raise _failure_of(model, response.error())
    return {name: pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs}


def _failure_of(model: str, error: Any) -> CutawayError:
    message = error.message()
    pb_utils.Logger.log_error(f"{model} failed: {message}")
    lowered = message.lower()
    if "out of memory" in lowered or "failed to allocate memory" in lowered:
        return GpuMemoryExhausted("The GPU has no memory left for this picture.")
    if "maximum queue size" in lowered:
        return Overloaded("A model's queue is full.")
    if "timeout expired" in lowered:
        return ProcessingTimeout("A model was not free before the deadline.")
    if error.code() in (pb_utils.TritonError.UNAVAILABLE, pb_utils.TritonError.NOT_FOUND):
        return ServerUnavailable("A model is not ready.")
    return InferenceError("A model failed.")


def failure(error: CutawayError) -> Any:
    """The response with an error."""
    codes = pb_utils.TritonError
    if isinstance(error, InputError):
        code = codes.INVALID_ARG
    elif isinstance(error, RequestCancelled):
        code = codes.CANCELLED
    elif isinstance(error, (ServerUnavailable, ProcessingTimeout)):
        # Triton has no code for a deadline of its own: 503 says that load is at fault, and 500 that the server is.
        code = codes.UNAVAILABLE
    else:
        code = codes.INTERNAL
    # Half a surrogate pair, which an option in JSON may hold, is no text that Triton takes.
    text = error.to_json().encode(errors="replace").decode()
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
