"""What a refusal or failure looks like to a caller, in either protocol: Triton's own statuses and error forms."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from typing import Any

import grpc
from cutaway.contract import errors
from cutaway.contract.errors import CutawayError, InputError, ProcessingTimeout, RequestCancelled, ServerUnavailable

log = logging.getLogger("gateway")

_PATH = re.compile(r"(?<!\w)/[\w.@+-]+(?:/[\w.@+-]+)+")
_FULL_QUEUE = ("exceeds maximum queue size", "request timeout expired")
_PASSED_ON = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED)


RESTART_S = 4.0
"""What a restart of Triton takes: callers that repeat sooner have given up when it is back."""


@dataclass
class Failure(Exception):
    """A failed request.

    Attributes:
        message: an error form, or plain words as Triton has them.
        code: for metrics.
        retry_after_s: None where the same request fails again.
    """

    message: str
    http_status: int
    grpc_status: grpc.StatusCode
    code: str
    retry_after_s: float | None = None

    @property
    def body(self) -> bytes:
        return json.dumps({"error": self.message}, ensure_ascii=False).encode("utf-8", "replace")


def of_error(error: CutawayError) -> Failure:
    """The failure with an error form."""
    status = grpc.StatusCode
    match error:
        case InputError():
            found = 400, status.INVALID_ARGUMENT
        case RequestCancelled():
            found = 499, status.CANCELLED
        case ServerUnavailable() | ProcessingTimeout():
            found = 503, status.UNAVAILABLE
        case _:
            found = 500, status.INTERNAL
    return Failure(error.to_json(), *found, error.code, error.retry_after)


def no_such_model(name: str) -> Failure:
    """In Triton's own words, by which clients know it."""
    message = f"Request for unknown model: {name[:80]!r} is not found"
    return Failure(message, 404, grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def not_found(what: str) -> Failure:
    return Failure(f"{what[:80]!r} is not found here", 404, grpc.StatusCode.UNIMPLEMENTED, "NOT_FOUND")


def forbidden(message: str) -> Failure:
    return Failure(message, 403, grpc.StatusCode.PERMISSION_DENIED, "FORBIDDEN")


def of_triton(error: grpc.aio.AioRpcError, elapsed_s: float) -> Failure:
    """The failure that Triton, or the way to it, reported; no path of this machine leaves with it."""
    said, status = error.details() or "", error.code()
    known = errors.from_json(said)
    if known is not None:
        return replace(of_error(known), message=_PATH.sub("…", said[said.index("{") :]))
    if any(words in said.lower() for words in _FULL_QUEUE):
        return of_error(errors.Overloaded("The server's queue is full."))
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        details: dict[str, Any] = {"elapsed_seconds": round(elapsed_s, 1)}
        return of_error(ProcessingTimeout(f"No answer within {elapsed_s:.1f} s.", details=details))
    if status is grpc.StatusCode.UNAVAILABLE:
        log.warning("Triton is not available: %s", said[:500])
        return of_error(
            ServerUnavailable("The models are not there: the server starts, or starts again.", retry_after=RESTART_S)
        )
    if status in _PASSED_ON:
        # Triton has INVALID_ARGUMENT for models and versions that it does not know, too.
        found = (404, grpc.StatusCode.NOT_FOUND) if "is not found" in said else (400, grpc.StatusCode.INVALID_ARGUMENT)
        return Failure(_PATH.sub("…", said), *found, found[1].name)
    log.error("Triton failed: %s %s", status.name, said[:500])
    if status is grpc.StatusCode.CANCELLED:
        return of_error(ServerUnavailable("The request was given up when the server stopped."))
    return of_error(errors.InferenceError("The server failed."))
