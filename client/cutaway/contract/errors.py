"""Typed errors, and the JSON form in which they cross the wire.

    CutawayError
    ├── InputError (also ValueError)          the caller's picture or options: never worth a retry
    │   ├── InvalidFormat                     INVALID_FORMAT
    │   ├── FileTooLarge                      FILE_TOO_LARGE
    │   ├── ResolutionTooLarge                RESOLUTION_TOO_LARGE
    │   ├── TooManyPixels                     TOO_MANY_PIXELS
    │   ├── ResolutionTooSmall                RESOLUTION_TOO_SMALL
    │   ├── ImageBomb                         IMAGE_BOMB
    │   ├── CorruptImage                      CORRUPT_IMAGE
    │   ├── InvalidOption                     INVALID_OPTION
    │   └── NoPersonDetected                  NO_PERSON_DETECTED
    └── ServiceError                          the server's state: `retry` says whether to try again
        ├── ServerUnavailable (also ConnectionError)   UNAVAILABLE
        │   ├── ServerRefused                 UNAVAILABLE, never worth a retry there
        │   ├── Overloaded                    OVERLOADED
        │   ├── RateLimitExceeded             RATE_LIMIT_EXCEEDED
        │   └── GpuMemoryExhausted            GPU_MEMORY_EXHAUSTED
        ├── ProcessingTimeout (also TimeoutError)      PROCESSING_TIMEOUT
        ├── RequestCancelled                  CANCELLED
        └── InferenceError (also RuntimeError)         INFERENCE_ERROR

Codes, tiers and advice are in :mod:`cutaway.contract.limits`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from cutaway.contract.limits import ERROR_CODES, Tier


class CutawayError(Exception):
    """Base class of Cutaway's errors.

    Attributes:
        code: one of :data:`cutaway.contract.limits.ERROR_CODES`.
        message: what happened, in one sentence.
        tier: 1 (critical) to 4 (low), see :class:`cutaway.contract.limits.Tier`.
        user_action: what the caller can do about it.
        retry_after: seconds until the same request may succeed: the server's value, or the table's; None where there is
            neither, or the same request cannot succeed.
        asked_to_wait_s: the server's own value, or None.
        details: figures that belong to the code (sizes, limits, the option's name, …); JSON values only.
        request_id: the request's id as the server logs it, or "" where none was given.
    """

    code: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retry_after: float | None = None,
        user_action: str | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        row = ERROR_CODES[self.code]
        self.message = message
        self.tier: Tier = row.tier
        self.user_action = row.user_action if user_action is None else user_action
        advised = row.retry_after_s if self.retry else None
        self.retry_after = advised if retry_after is None else retry_after
        self.asked_to_wait_s = retry_after
        self.details = details or {}
        self.request_id = request_id

    @property
    def retry(self) -> bool:
        """Whether the very same request can succeed later."""
        return ERROR_CODES[self.code].retry

    def asks_to_wait(self, seconds: float) -> None:
        """Set the server's wait from beside the error form, such as a ``Retry-After`` header."""
        self.retry_after = self.asked_to_wait_s = seconds
        self.details["retry_after_seconds"] = seconds

    def __str__(self) -> str:
        return f"{self.code}: {self.message} {self.user_action}"

    def to_dict(self) -> dict[str, Any]:
        """The error form of the wire: code, message, tier, user_action, retry_after (seconds), details."""
        return {
            "code": self.code,
            "message": self.message,
            "tier": int(self.tier),
            "user_action": self.user_action,
            "retry_after": self.retry_after,
            "details": self.details,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword arguments do not pickle by themselves; process pools need it.
        return (_rebuild, (type(self), self.to_dict(), self.request_id, self.asked_to_wait_s))


class InputError(CutawayError, ValueError):
    """The picture or an option is invalid; the same request fails at every server."""

    code = "INVALID_FORMAT"


class InvalidFormat(InputError):
    """Not a JPEG, PNG, WebP or BMP, or not what it is declared to be. Details: supported, received."""

    code = "INVALID_FORMAT"


class FileTooLarge(InputError):
    """Details: size_bytes, max_bytes."""

    code = "FILE_TOO_LARGE"


class ResolutionTooLarge(InputError):
    """Details: width_px, height_px, max_long_side_px, max_short_side_px."""

    code = "RESOLUTION_TOO_LARGE"


class TooManyPixels(InputError):
    """Details: width_px, height_px, pixels, max_pixels."""

    code = "TOO_MANY_PIXELS"


class ResolutionTooSmall(InputError):
    """Details: width_px, height_px, min_side_px."""

    code = "RESOLUTION_TOO_SMALL"


class ImageBomb(InputError):
    """Details: file_bytes, decompressed_bytes, ratio, and max_ratio, or scans and max_scans of a JPEG."""

    code = "IMAGE_BOMB"


class CorruptImage(InputError):
    """The header is valid and the data is truncated or damaged."""

    code = "CORRUPT_IMAGE"


class InvalidOption(InputError):
    """Details: name, value, allowed."""

    code = "INVALID_OPTION"


class NoPersonDetected(InputError):
    """No person was detected in a picture of which people were to be cut out. Details: min_confidence, tips."""

    code = "NO_PERSON_DETECTED"


class ServiceError(CutawayError):
    """The server failed, not the request."""

    code = "INFERENCE_ERROR"


class ServerUnavailable(ServiceError, ConnectionError):
    """Nothing answers at the address, or the model is not loaded."""

    code = "UNAVAILABLE"


class ServerRefused(ServerUnavailable):
    """The server at this address never serves the request: refused credentials, no such model, no Triton."""

    @property
    def retry(self) -> bool:
        return False


class Overloaded(ServerUnavailable):
    """The server sheds load: its queue is full, or it has too many streams."""

    code = "OVERLOADED"


class RateLimitExceeded(ServerUnavailable):
    """Details: retry_after_seconds, requests_remaining, limit_reset_at."""

    code = "RATE_LIMIT_EXCEEDED"


class GpuMemoryExhausted(ServerUnavailable):
    """Details: required_mb, available_mb, where they are known."""

    code = "GPU_MEMORY_EXHAUSTED"


class ProcessingTimeout(ServiceError, TimeoutError):
    """The server's or the caller's deadline was exceeded. Details: elapsed_seconds."""

    code = "PROCESSING_TIMEOUT"


class RequestCancelled(ServiceError):
    """The caller cancelled the request."""

    code = "CANCELLED"


class InferenceError(ServiceError, RuntimeError):
    """A model or the pipeline failed; the reason is in the server's log."""

    code = "INFERENCE_ERROR"


ERRORS_BY_CODE: dict[str, type[CutawayError]] = {
    cls.code: cls
    for cls in (
        InvalidFormat,
        FileTooLarge,
        ResolutionTooLarge,
        TooManyPixels,
        ResolutionTooSmall,
        ImageBomb,
        CorruptImage,
        InvalidOption,
        NoPersonDetected,
        Overloaded,
        RateLimitExceeded,
        ProcessingTimeout,
        GpuMemoryExhausted,
        InferenceError,
        ServerUnavailable,
        RequestCancelled,
    )
}


def invalid_option(name: str, value: object, allowed: str) -> InvalidOption:
    """The error for an argument `name` that cannot have this value; `allowed` says in words what it can have."""
    text = str(value)
    shown = text if len(text) <= 200 else text[:200] + "…"
    return InvalidOption(
        f"{name} cannot be {shown!r}: allowed is {allowed}.",
        details={"name": name, "value": shown, "allowed": allowed},
    )


def from_dict(form: dict[str, Any], *, request_id: str = "") -> CutawayError:
    """The typed error of an error form. An unknown code becomes :class:`InferenceError` that keeps the message."""
    cls = ERRORS_BY_CODE.get(str(form.get("code")), InferenceError)
    details = form.get("details")
    retry_after = form.get("retry_after")
    if not isinstance(retry_after, (int, float)) or not 0 <= retry_after < 1e9:  # NaN is refused too
        retry_after = None
    user_action = form.get("user_action")
    error = cls(
        str(form.get("message", "")),
        details=details if isinstance(details, dict) else None,
        retry_after=None if retry_after is None else float(retry_after),
        user_action=user_action if isinstance(user_action, str) else None,
        request_id=request_id,
    )
    if retry_after == ERROR_CODES[cls.code].retry_after_s:
        error.asked_to_wait_s = None  # every form has the table's value where the server has none of its own
    return error


def from_json(text: str, *, request_id: str = "") -> CutawayError | None:
    """The typed error in a server's message, or None where the text holds no error form.

    Triton may add text before the form, which begins at the first ``{``.
    """
    start = text.find("{")
    if start < 0:
        return None
    try:
        form, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError):
        return None
    if not isinstance(form, dict) or "code" not in form or "message" not in form:
        return None
    return from_dict(form, request_id=request_id)


def _rebuild(
    cls: type[CutawayError], form: dict[str, Any], request_id: str, asked_to_wait_s: float | None
) -> CutawayError:
    return cls(
        form["message"],
        details=form["details"],
        retry_after=asked_to_wait_s,
        user_action=form["user_action"],
        request_id=request_id,
    )
