"""Errors of the HTTP service in the forms of its three dialects.

The SDK's errors keep their codes and statuses. The paths decide the form: ``/api/background-removal`` has
``{detail, error_code, …}``, the other paths under ``/api`` ``{success: false, error: {…}}``, and ``/v1.0`` the
``{errors: [{title, code, detail}]}`` of remove.bg.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from cutaway.contract.errors import CutawayError, InputError
from cutaway.contract.limits import INPUT_LIMITS, MIB, Tier
from starlette.responses import JSONResponse

from gateway.access import current

_STATUSES = {
    **{"FILE_TOO_LARGE": 413, "NO_PERSON_DETECTED": 422, "RATE_LIMIT_EXCEEDED": 429, "CANCELLED": 499},
    **dict.fromkeys(("OVERLOADED", "GPU_MEMORY_EXHAUSTED", "UNAVAILABLE"), 503),
    "PROCESSING_TIMEOUT": 504,
}
"""Statuses of the SDK's codes; 400 for other errors of the request, 500 for the rest."""

CORS_HEADERS = {"Access-Control-Allow-Origin": "*"}


class ServiceProblem(Exception):
    """An error of the service itself, where the SDK's table has no code.

    Args:
        status: of HTTP.
        code: stable, for programs.
        message: what is wrong, in a sentence.
        user_action: what to do about it.
        title: the remove.bg code, where a client of that API reads one.
    """

    def __init__(
        self, status: int, code: str, message: str, user_action: str = "", *, title: str = "", **details: Any
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.user_action, self.title, self.details = user_action, title or code.lower(), details
        self.retry_after: float | None = None
        self.tier = Tier.HIGH


Problem = CutawayError | ServiceProblem


def not_found(what: str) -> ServiceProblem:
    return ServiceProblem(404, "NOT_FOUND", f"There is no {what}, or it has been deleted.", "Send the picture again.")


def status_of(error: Problem) -> int:
    if isinstance(error, ServiceProblem):
        return error.status
    return _STATUSES.get(error.code, 400 if isinstance(error, InputError) else 500)


def answer(path: str, error: Problem) -> JSONResponse:
    """The error in the form of the path's dialect, with ``Retry-After`` where waiting helps."""
    headers = {}
    current().code = error.code
    if error.retry_after is not None and status_of(error) in (429, 503):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if path.startswith("/v1.0"):
        return JSONResponse(removebg_form(error), removebg_status(error), headers | CORS_HEADERS)
    form = detail_form(error) if path.startswith("/api/background-removal") else success_form(error)
    return JSONResponse(form, status_of(error), headers)


# ----------------------------------------------------------------------------------- /api/background-removal


def detail_form(error: Problem) -> dict[str, Any]:
    """``{detail, error_code, …}`` with the specification's names of the details."""
    details = dict(error.details)
    form: dict[str, Any] = {"detail": _detail(error), "error_code": error.code}
    match error.code:
        case "INVALID_FORMAT":
            formats = [name.upper() for name in INPUT_LIMITS.formats]
            form |= {"supported_formats": formats, "received_format": str(details.get("received", "unknown"))}
        case "IMAGE_BOMB":
            form |= {
                "file_size_bytes": details.get("file_bytes"),
                "decompressed_size_bytes": details.get("decompressed_bytes"),
                "ratio": details.get("ratio"),
            }
        case "FILE_TOO_LARGE":
            size = details.get("size_bytes")
            form |= {"file_size_mb": None if size is None else round(size / MIB, 2)}
            form |= {"max_size_mb": details.get("max_bytes", INPUT_LIMITS.max_file_bytes) / MIB}
        case "RATE_LIMIT_EXCEEDED":
            seconds = float(details.get("retry_after_seconds") or error.retry_after or 60)
            form |= {"retry_after_seconds": round(seconds), "requests_remaining": details.get("requests_remaining", 0)}
            form |= {"limit_reset_at": details.get("limit_reset_at") or timestamp(time.time() + seconds)}
        case "GPU_MEMORY_EXHAUSTED":
            form |= {
                "gpu_memory_required_mb": details.get("required_mb"),
                "gpu_memory_available_mb": details.get("available_mb"),
                "suggested_action": error.user_action,
                "retry_after": round(error.retry_after or 30),
            }
        case "PROCESSING_TIMEOUT":
            form |= {"elapsed_seconds": details.get("elapsed_seconds"), "suggested_action": error.user_action}
        case _:
            form |= {"suggested_action": error.user_action} | details
    return form


def _detail(error: Problem) -> str:
    """The message; for the codes whose words the specification gives, with them."""
    limits = INPUT_LIMITS
    match error.code:
        case "INVALID_FORMAT":
            return f"Unsupported file format. {error.message}"
        case "IMAGE_BOMB":
            return f"Decompression bomb suspected. {error.message}"
        case "RESOLUTION_TOO_LARGE" | "TOO_MANY_PIXELS":
            largest = f"{limits.max_long_side_px}x{limits.max_short_side_px}"
            return f"Larger than 8K ({largest}): refused before decoding, as a bomb would be. {error.message}"
        case "RESOLUTION_TOO_SMALL":
            return f"Smaller than {limits.min_side_px}x{limits.min_side_px}. {error.message}"
        case "FILE_TOO_LARGE":
            return f"File size exceeds 10MB. {error.message}"
        case "NO_PERSON_DETECTED":
            return f"No persons detected in the uploaded image. {error.message}"
    return error.message


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# --------------------------------------------------------------------------------------- the other paths of /api

_NAMES = {"PROCESSING_TIMEOUT": "BIREFNET_TIMEOUT", "GPU_MEMORY_EXHAUSTED": "GPU_OOM"}
"""The specification's names, where they differ from the SDK's."""


def error_entry(error: Problem) -> dict[str, Any]:
    """``{code, message, tier, user_action, retry_after, details}``."""
    message = "No persons detected in the uploaded image" if error.code == "NO_PERSON_DETECTED" else error.message
    return {
        "code": _NAMES.get(error.code, error.code),
        "message": message,
        "tier": int(error.tier),
        "user_action": error.user_action,
        "retry_after": error.retry_after,
        "details": dict(error.details),
    }


def success_form(error: Problem) -> dict[str, Any]:
    return {"success": False, "error": error_entry(error)}


# ------------------------------------------------------------------------------------------------- remove.bg

_REMOVEBG = {
    "INVALID_FORMAT": (400, "invalid_file_type", "File type not supported"),
    "FILE_TOO_LARGE": (400, "file_too_large", "File too large"),
    "RESOLUTION_TOO_LARGE": (400, "resolution_too_high", "Resolution too high"),
    "TOO_MANY_PIXELS": (400, "resolution_too_high", "Resolution too high"),
    "RESOLUTION_TOO_SMALL": (400, "invalid_dimensions", "Dimensions too small"),
    "IMAGE_BOMB": (400, "failed_to_read_image", "Failed to read image"),
    "CORRUPT_IMAGE": (400, "failed_to_read_image", "Failed to read image"),
    "NO_PERSON_DETECTED": (400, "unknown_foreground", "Could not identify foreground in image"),
    "RATE_LIMIT_EXCEEDED": (429, "rate_limit_exceeded", "Rate limit exceeded"),
    "UNAUTHORIZED": (403, "auth_failed", "API Key invalid"),
}
"""The SDK's code → status, code and title of remove.bg."""


def removebg_status(error: Problem) -> int:
    return _REMOVEBG[error.code][0] if error.code in _REMOVEBG else status_of(error)


def removebg_form(error: Problem) -> dict[str, Any]:
    if isinstance(error, ServiceProblem) and error.code not in _REMOVEBG:
        code, title = error.title, error.message
    else:
        _, code, title = _REMOVEBG.get(error.code, (0, error.code.lower(), error.message))
    return {"errors": [{"title": title, "code": code, "detail": f"{error.message} {error.user_action}".strip()}]}
