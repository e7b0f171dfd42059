"""Failed calls as typed errors, by gRPC status, HTTP status, or the messages of Triton, gRPC and proxies."""

from __future__ import annotations

import json
import re
from contextlib import suppress

from cutaway.contract import errors
from cutaway.contract.errors import CutawayError, InferenceError, ProcessingTimeout, ServerRefused, ServerUnavailable

MAX_ANSWER_BYTES = 2**31 - 1  # of one gRPC message; the same limit holds for HTTP answers
MAX_MESSAGE_CHARS = 500  # of a server's message in an error

STATUS_OF_HTTP = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "PAYLOAD_TOO_LARGE",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    504: "DEADLINE_EXCEEDED",
    **dict.fromkeys((408, 409, 502, 503), "UNAVAILABLE"),
}
"""Triton's and common proxies' HTTP statuses by the gRPC status that means the same."""

_FULL_QUEUE = ("exceeds maximum queue size", "request timeout expired")

# Triton's messages about a model that it does not serve (tried with 2.51): "Request for unknown model: 'm' is not
# found" or "'m' version 9 is not found" are permanent, since it accepts requests only when everything is loaded.
# Temporary are those while models load or unload, or while it shuts down: "has no available versions" (also under
# "unknown model"), "is not at ready state", "Server exiting", "Server is stopping".
_NO_SUCH_MODEL = ("request for unknown model", "is not found")
_PASSING = ("no available versions", "not ready", "not at ready state", "server exiting", "server is stopping")

# gRPC's messages, all as UNAVAILABLE, about an untrusted certificate, or a peer that is no gRPC server. A closed or
# refused connection is not among them, because a server that restarts looks the same.
_UNTRUSTED = ("certificate_verify_failed", "hostname verification check failed", "alert_unknown_ca")
_NEEDS_CERTIFICATE = ("alert_certificate_required", "alert_bad_certificate", "alert_handshake_failure")
_OTHER_PROTOCOL = ("wrong_version_number", "expected settings frame as the first frame", "connect an http1.x server")
_PROXY_FAILED = re.compile(r"http status 5\d\d")
"""A proxy without a server answers a gRPC request in plain HTTP."""


def malformed(what: str) -> InferenceError:
    """The error for a malformed answer."""
    return InferenceError(f"The server's answer is malformed: {what}.")


def error_of(
    status: str, message: str, *, address: str, elapsed_s: float, retry_after_s: float | None = None
) -> CutawayError:
    """The typed error for a failed call that its caller did not cancel, from a gRPC status by name, and a message: of
    the server, where Cutaway's own errors are a JSON form in it, or of the network library."""
    error = errors.from_json(message) or _untyped(status, message, address, elapsed_s)
    if retry_after_s is not None and error.retry:
        error.asks_to_wait(retry_after_s)
    return error


def _untyped(status: str, message: str, address: str, elapsed_s: float) -> CutawayError:
    """The error of a failure without Cutaway's JSON form."""
    said = " ".join(message.split())[:MAX_MESSAGE_CHARS].rstrip(".")
    lower = said.lower()
    if status == "DEADLINE_EXCEEDED":
        return timed_out(address, elapsed_s)
    if status == "CANCELLED":
        return ServerUnavailable(f"{address} gave the request up.")
    if any(words in lower for words in _FULL_QUEUE):
        return errors.Overloaded("The server's queue is full.")
    if status == "PAYLOAD_TOO_LARGE":
        return errors.FileTooLarge(f"{address} takes no file this large.")
    if status == "RESOURCE_EXHAUSTED":
        if f"vs. {MAX_ANSWER_BYTES})" in lower:  # the limit of this side, so that it is about the answer
            return malformed(f"it has more than {MAX_ANSWER_BYTES:,} bytes")
        if "larger than max" in lower:
            return errors.FileTooLarge(f"{address} takes no file this large.")
        return errors.RateLimitExceeded(f"{address} limits the rate: {said}.")
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return refused(f"{address} refuses access: {said}.", "Check the token or API key.")
    if all(words in lower for words in _NO_SUCH_MODEL):
        return refused(f"{address} serves no such model: {said}.", "Check the address: is it a Cutaway server's?")
    if any(words in lower for words in _PASSING):
        return ServerUnavailable(f"{address} is not ready: {said}.")
    if status in ("NOT_FOUND", "UNIMPLEMENTED"):
        return no_triton(address, said)
    if status == "UNAVAILABLE":
        if any(words in lower for words in _UNTRUSTED):
            return untrusted(address, said)
        if any(words in lower for words in _NEEDS_CERTIFICATE):
            return refused(f"{address} refuses the connection: {said}.", "Check the client certificate.")
        if any(words in lower for words in _OTHER_PROTOCOL) and not _PROXY_FAILED.search(lower):
            return no_triton(address, said)
        return ServerUnavailable(f"{address} is not available: {said}.")
    if status == "INVALID_ARGUMENT":
        advice = "Check that client and server are of the same release, and what a proxy between them asks for."
        return refused(f"{address} does not take the request: {said or status}.", advice)
    return InferenceError(f"The server failed: {said or status}.")


def refused(message: str, user_action: str) -> ServerRefused:
    return ServerRefused(message, user_action=user_action)


def no_triton(address: str, said: str) -> ServerRefused:
    """The error for a peer that is no Triton server."""
    advice = "Check the address, its port, and whether grpc://, grpcs://, http:// or https:// is right."
    return refused(f"{address} answers, but not as a Triton server does: {said or 'no words'}.", advice)


def untrusted(address: str, said: str) -> ServerRefused:
    advice = "Name the authority that signed it (ca_file), and use the host's name that is written in it."
    return refused(f"The certificate of {address} is not trusted: {said}.", advice)


def timed_out(address: str, elapsed_s: float) -> ProcessingTimeout:
    """The error for a caller's deadline that is exceeded."""
    details = {"elapsed_seconds": round(elapsed_s, 3)}
    return ProcessingTimeout(f"{address} did not answer within {elapsed_s:.1f} s.", details=details)


def http_message(body: bytes) -> str:
    """The message of a failed HTTP answer: Triton's ``{"error": …}``, or the start of the body."""
    said = None
    with suppress(ValueError, RecursionError, AttributeError):
        said = json.loads(body).get("error")
    return said if isinstance(said, str) else body[: 4 * MAX_MESSAGE_CHARS].decode("utf-8", errors="replace")
