"""What a failed answer means: whose fault it is, whether it can pass, and how long to wait."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from cutaway.contract.errors import (
    CorruptImage,
    CutawayError,
    FileTooLarge,
    InferenceError,
    InvalidFormat,
    Overloaded,
    ProcessingTimeout,
    RateLimitExceeded,
)
from cutaway.providers.errors import ProviderRefused, ProviderUnavailable
from cutaway.providers.model import Secret
from cutaway.providers.steps import Response
from cutaway.resilience import parse_retry_after

MAX_SAID_CHARS = 200
"""So much of a provider's own words goes into an error."""

_ABOUT_THE_PICTURE = re.compile(
    r"cannot identify image|(?:invalid|corrupt\w*|damaged|unsupported|unreadable|truncated|malformed) (?:input )?"
    r"(?:image|picture)|image (?:file )?(?:is )?(?:invalid|corrupt\w*|truncated|too (?:large|small|big))"
    r"|(?:decod\w*|pars\w*|open|read) (?:the )?(?:input )?image",
    re.IGNORECASE,
)
"""A 400 or 422 is as often about a parameter or a version, and those may be right at the next provider."""


class GaveUpWaiting(ProcessingTimeout):
    """408 and 504: the service gave up, and may not the next time."""

    @property
    def retry(self) -> bool:
        return True


class ModelFailed(InferenceError):
    """The model ran and failed; the same picture would fail there again."""

    @property
    def retry(self) -> bool:
        return False


def of_answer(response: Response, provider: str, token: Secret, advice: Callable[[int], str]) -> CutawayError | None:
    """The typed error of an answer, or None for a success or a redirect.

    Args:
        advice: what a caller can do about a refusal with this status.
    """
    status = response.status
    if status < 400:
        return None
    said = _said(response, token)
    details: dict[str, Any] = {"provider": provider, "status": status}
    asked = parse_retry_after(response.headers.get("retry-after"))
    if asked is None:
        asked = _asked_in_body(response)
    if asked is not None:
        details["retry_after_seconds"] = asked
    message = f"{provider} answered {status}{': ' if said else ''}{said}."
    if status == 413:
        return FileTooLarge(f"{provider} takes no file this large.", details=details)
    if status == 415:
        return InvalidFormat(f"{provider} does not take this format.", details=details)
    if status in (400, 422) and _ABOUT_THE_PICTURE.search(said):
        return _unreadable(said, details)
    if status == 429:
        return RateLimitExceeded(message, details=details, retry_after=asked)
    if status in (408, 504):
        return GaveUpWaiting(message, details=details)
    if status == 503:
        return Overloaded(message, details=details, retry_after=asked)
    if status == 409 or status >= 500:
        return ProviderUnavailable(message, details=details, retry_after=asked)
    return ProviderRefused(message, details=details, user_action=advice(status))


def of_model(said: object, provider: str, token: Secret) -> CutawayError:
    """The error for a model that ran and failed, by its own words."""
    words = _short(said, token)
    if _ABOUT_THE_PICTURE.search(words):
        return _unreadable(words, {"provider": provider})
    return ModelFailed(f"The model at {provider} failed{': ' if words else ''}{words}.", details={"provider": provider})


def _unreadable(said: str, details: dict[str, Any]) -> CorruptImage:
    return CorruptImage(f"{details['provider']} cannot read the picture: {said}.", details=details)


def _said(response: Response, token: Secret) -> str:
    """What a failed answer says for itself, short and without the token."""
    form = response.json() if response.media_type.endswith("json") else None
    if isinstance(form, dict):
        for name in ("detail", "error", "message", "title"):
            if isinstance(form.get(name), (str, list, dict)):
                return _short(form[name], token)
    if "html" in response.media_type:
        return ""
    return _short(response.body[:2000].decode("utf-8", "replace"), token)


def _short(said: object, token: Secret) -> str:
    text = said if isinstance(said, str) else "" if said is None else json.dumps(said, default=str)
    return token.scrub(" ".join(text.split()))[:MAX_SAID_CHARS].rstrip(". ")


def _asked_in_body(response: Response) -> float | None:
    """Seconds that the body asks to wait, where the API says it there."""
    form = response.json()
    asked = form.get("retry_after") if isinstance(form, dict) else None
    return float(asked) if isinstance(asked, (int, float)) and 0 <= asked < float("inf") else None
