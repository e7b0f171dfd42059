"""Errors of hosted models, and the mapping of failed answers to them.

    InvalidOption       LicenceNotAccepted      a non-commercial model without `accept_noncommercial`
    ServerUnavailable   ProviderUnavailable     no answer, or temporarily unavailable: worth a retry
                        └── ProviderRefused     refused permanently: token, model, parameters
    ProcessingTimeout   GatewayTimeout          408 and 504: the service's own timeout, worth a retry
    InferenceError      InvalidAnswer           the model failed, or its answer is no valid result

All but the first let a fallback chain go on to the next tier. Details name the provider and the HTTP status where
there was one; no message, representation or detail holds a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cutaway.contract import errors
from cutaway.resilience import parse_retry_after

if TYPE_CHECKING:
    import httpx

Scrub = Callable[[str], str]
QUOTED_CHARS = 200  # of a provider's own message
_ABOUT_THE_PICTURE = re.compile(
    r"cannot identify image|(?:invalid|corrupt\w*|damaged|unsupported|unreadable|truncated|malformed) (?:input )?"
    r"(?:image|picture)|image (?:file )?(?:is )?(?:invalid|corrupt\w*|truncated|too (?:large|small|big))"
    r"|(?:decod\w*|pars\w*|open|read) (?:the )?(?:input )?image",
    re.IGNORECASE,
)
"""Only these 400s and 422s are about the picture; others are about parameters, which the next provider may accept."""


class LicenceNotAccepted(errors.InvalidOption):
    """The weights may not be used commercially and `accept_noncommercial` was not given. Details: model, licence."""


class ProviderUnavailable(errors.ServerUnavailable):
    """Temporarily unavailable: worth a retry. Details: provider, status."""


class ProviderRefused(ProviderUnavailable):
    """The same request is always refused: credentials, a model that is not served, parameters."""

    retry = False


class GatewayTimeout(errors.ProcessingTimeout):
    """The service's own timeout was exceeded; worth a retry."""

    retry = True


class InvalidAnswer(errors.InferenceError):
    """The model failed, or its answer is damaged, too large, of another type or size. Details: provider."""

    retry = False


_BY_STATUS: dict[int, type[errors.CutawayError]] = {408: GatewayTimeout, 504: GatewayTimeout, 409: ProviderUnavailable}
_BY_STATUS |= {413: errors.FileTooLarge, 415: errors.InvalidFormat}
_BY_STATUS |= {429: errors.RateLimitExceeded, 503: errors.Overloaded}


def invalid(provider: str, what: str, verb: str = "answered with") -> InvalidAnswer:
    """The error for an invalid answer."""
    action = "Check the provider's model and settings, or ask another one."
    return InvalidAnswer(f"{provider} {verb} {what.rstrip('.')}.", details={"provider": provider}, user_action=action)


def of_status(response: httpx.Response, provider: str, scrub: Scrub, action: str) -> errors.CutawayError | None:
    """The typed error of an answer, or None for a success or a redirect; `action` is for a refusal."""
    status, form = response.status_code, json_of(response)
    if status < 400:
        return None
    form = form if isinstance(form, dict) else {}
    words = [form[key] for key in ("detail", "error", "message", "title") if form.get(key)]
    page = "html" in response.headers.get("content-type", "")
    said = _short(words[0] if words else "" if page else response.content[:2000].decode("utf-8", "replace"), scrub)
    wait_s = parse_retry_after(response.headers.get("retry-after", str(form.get("retry_after"))))
    details = {"provider": provider, "status": status, **({} if wait_s is None else {"retry_after_seconds": wait_s})}
    if status in (400, 422) and _ABOUT_THE_PICTURE.search(said):
        return errors.CorruptImage(f"{provider} cannot read the picture: {said}.", details=details)
    kind = _BY_STATUS.get(status, ProviderUnavailable if status >= 500 else ProviderRefused)
    message, advice = f"{provider} answered {status}{': ' if said else ''}{said}.", action * (kind is ProviderRefused)
    return kind(message, details=details, retry_after=wait_s, user_action=advice or None)


def of_model(said: object, provider: str, scrub: Scrub) -> errors.CutawayError:
    """The error for a model that ran and failed, by its message."""
    words = _short(said, scrub)
    if _ABOUT_THE_PICTURE.search(words):
        return errors.CorruptImage(f"{provider} cannot read the picture: {words}.", details={"provider": provider})
    return invalid(provider, f"a model that failed{': ' if words else ''}{words}")


def json_of(response: httpx.Response) -> Any:
    """The body as JSON, or None where it is not JSON."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return None


def _short(said: object, scrub: Scrub) -> str:
    text = said if isinstance(said, str) else "" if said is None else json.dumps(said, default=str)
    return scrub(" ".join(text.split()))[:QUOTED_CHARS].rstrip(". ")
