"""Shared by the Python models: calls of a network inside the server, and errors as Triton responses."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
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
)
from numpy.typing import NDArray

DETECTOR_OUTPUTS = ("boxes", "scores", "classes", "coefficients", "prototypes")


def guarded(request: Any, respond: Callable[[Any], Any], failed: Callable[[str], None] = lambda _: None) -> Any:
    """The response to a request, or to its error, which does not affect the others of the batch.

    Args:
        failed: called with the code of an error.
    """
    try:
        return respond(request)
    except CutawayError as raised:
        error = raised
    except MemoryError:
        error = InferenceError("The picture needs more memory than there is.")
    except Exception:
        pb_utils.Logger.log_error(f"request {request.request_id()!r} failed\n{traceback.format_exc()}")
        error = InferenceError("The pipeline failed.")
    failed(error.code)
    return failure(error)


def call(request: Any, model: str, images: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Run a model on a batch within this server.

    Raises:
        ServiceError: it failed; the network's own message is in the log only.
    """
    inner = pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor("images", images)],
        request_id=request.request_id(),
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
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.to_json(), code))
