"""Typed errors, and the JSON form in which they cross the wire.

The caller's are `InputError`s, also ValueErrors and never worth a retry; the server's are `ServiceError`s, whose
`retry` says whether to try again. Codes, tiers and advice are in :mod:`cutaway.contract.limits`.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

from cutaway.contract.limits import ERROR_CODES, Tier

ERRORS_BY_CODE: dict[str, type[CutawayError]] = {}


class CutawayError(Exception):
    """Base class of Cutaway's errors.

    Attributes:
        code: one of :data:`cutaway.contract.limits.ERROR_CODES`; `retry`: whether the same request can succeed later.
        message: what happened, in one sentence; `user_action`: what the caller can do about it.
        tier: 1 (critical) to 4 (low), see :class:`cutaway.contract.limits.Tier`.
        retry_after: seconds until the same request may succeed: the server's (`asked_to_wait_s`), or the table's.
        details: figures that belong to the code (sizes, limits, the option's name, …); JSON values only.
        request_id: the request's id as the server logs it, or "" where none was given.
    """

    code: ClassVar[str]
    retry: ClassVar[bool]

    def __init_subclass__(cls, code: str = "") -> None:
        if code:
            cls.code, cls.retry = code, ERROR_CODES[code].retry
            ERRORS_BY_CODE[code] = cls  # of classes with the same code the last, which is no base class

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
        self.message, self.request_id, self.details = message, request_id, details or {}
        self.tier: Tier = row.tier
        self.user_action = row.user_action if user_action is None else user_action
        advised = row.retry_after_s if self.retry else None
        self.retry_after = advised if retry_after is None else retry_after
        self.asked_to_wait_s = retry_after

    def asks_to_wait(self, seconds: float) -> None:
        """Set the server's wait from beside the error form, such as a ``Retry-After`` header."""
        self.retry_after = self.asked_to_wait_s = seconds
        self.details["retry_after_seconds"] = seconds

    def __str__(self) -> str:
        return f"{self.code}: {self.message} {self.user_action}"

    def to_dict(self) -> dict[str, Any]:
        """The error form of the wire: code, message, tier, user_action, retry_after (seconds), details."""
        names = ("code", "message", "tier", "user_action", "retry_after", "details")
        return {name: getattr(self, name) for name in names} | {"tier": int(self.tier)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)


class InputError(CutawayError, ValueError, code="INVALID_FORMAT"):
    """The picture or an option is invalid; the same request fails at every server."""


class InvalidFormat(InputError, code="INVALID_FORMAT"):
    """Not a JPEG, PNG, WebP or BMP, or not what it is declared to be. Details: supported, received."""


class FileTooLarge(InputError, code="FILE_TOO_LARGE"):
    """Details: size_bytes, max_bytes."""


class ResolutionTooLarge(InputError, code="RESOLUTION_TOO_LARGE"):
    """Details: width_px, height_px, max_long_side_px, max_short_side_px."""


class TooManyPixels(InputError, code="TOO_MANY_PIXELS"):
    """Details: width_px, height_px, pixels, max_pixels."""


class ResolutionTooSmall(InputError, code="RESOLUTION_TOO_SMALL"):
    """Details: width_px, height_px, min_side_px."""


class ImageBomb(InputError, code="IMAGE_BOMB"):
    """Details: file_bytes, decompressed_bytes, ratio, and max_ratio, or scans and max_scans of a JPEG."""


class CorruptImage(InputError, code="CORRUPT_IMAGE"):
    """The header is valid and the data is truncated or damaged."""


class InvalidOption(InputError, code="INVALID_OPTION"):
    """Details: name, value, allowed."""


class NoPersonDetected(InputError, code="NO_PERSON_DETECTED"):
    """No person was detected in a picture of which people were to be cut out. Details: min_confidence, tips."""


class ServiceError(CutawayError, code="INFERENCE_ERROR"):
    """The server failed, not the request."""


class ServerUnavailable(ServiceError, ConnectionError, code="UNAVAILABLE"):
    """Nothing answers at the address, or the model is not loaded."""


class ServerRefused(ServerUnavailable):
    """The server at this address never serves the request: refused credentials, no such model, no Triton."""

    retry = False


class Overloaded(ServerUnavailable, code="OVERLOADED"):
    """The server sheds load: its queue is full, or it has too many streams."""


class RateLimitExceeded(ServerUnavailable, code="RATE_LIMIT_EXCEEDED"):
    """Details: retry_after_seconds, requests_remaining, limit_reset_at."""


class GpuMemoryExhausted(ServerUnavailable, code="GPU_MEMORY_EXHAUSTED"):
    """Details: required_mb, available_mb, where they are known."""


class ProcessingTimeout(ServiceError, TimeoutError, code="PROCESSING_TIMEOUT"):
    """The server's or the caller's deadline was exceeded. Details: elapsed_seconds."""


class RequestCancelled(ServiceError, code="CANCELLED"):
    """The caller cancelled the request."""


class InferenceError(ServiceError, RuntimeError, code="INFERENCE_ERROR"):
    """A model or the pipeline failed; the reason is in the server's log."""


def invalid_option(name: str, value: object, allowed: str, message: str = "") -> InvalidOption:
    """The error for an argument `name` that cannot have this value; `allowed` says in words what it can have."""
    shown = str(value)[:200]
    message = message or f"{name} cannot be {shown!r}: allowed is {allowed}."
    return InvalidOption(message, details={"name": name, "value": shown, "allowed": allowed})


def from_json(text: str, *, request_id: str = "") -> CutawayError | None:
    """The typed error in a server's message, or None where the text holds no error form, which begins at the first
    ``{``. An unknown code is an :class:`InferenceError`."""
    try:
        form, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    except (ValueError, RecursionError):
        return None
    if "code" not in form or "message" not in form:
        return None
    cls = ERRORS_BY_CODE.get(str(form["code"]), InferenceError)
    details, user_action, retry_after = (form.get(name) for name in ("details", "user_action", "retry_after"))
    if not isinstance(retry_after, (int, float)) or not 0 <= retry_after < 1e9:  # NaN is refused too
        retry_after = None
    error = cls(
        str(form["message"]),
        details=details if isinstance(details, dict) else None,
        retry_after=None if retry_after is None else float(retry_after),
        user_action=user_action if isinstance(user_action, str) else None,
        request_id=request_id,
    )
    if retry_after == ERROR_CODES[cls.code].retry_after_s:
        error.asked_to_wait_s = None  # every form has the table's value where the server has none of its own
    return error
