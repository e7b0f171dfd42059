"""What goes wrong with hosted models, beside :mod:`cutaway.contract.errors`.

    InvalidOption
    └── LicenceNotAccepted            a non-commercial model, and nobody said that this is all right
    ServerUnavailable
    └── ProviderUnavailable           the provider does not answer, or says that it cannot now
        └── ProviderRefused           it refuses for good: token, model, parameters
    InferenceError
    └── InvalidAnswer                 it answered with something that is no result

All but the first let a fallback chain go on to the next tier. Details name the provider and the HTTP status where
there was one; no message, representation or detail holds a token.
"""

from __future__ import annotations

from typing import Any

from cutaway.contract.errors import InferenceError, InvalidOption, ServerUnavailable


class LicenceNotAccepted(InvalidOption):
    """The weights may not be used commercially and `accept_noncommercial` was not given. Details: model, licence."""


class ProviderUnavailable(ServerUnavailable):
    """Worth another try later. Details: provider, status."""


class ProviderRefused(ProviderUnavailable):
    """The same request will be refused again: credentials, a model that is not served, parameters."""

    @property
    def retry(self) -> bool:
        return False


class InvalidAnswer(InferenceError):
    """Of the wrong type, too large, damaged, or of another size than the picture. Details: provider."""

    def __init__(self, message: str, **more: Any) -> None:
        if more.get("user_action") is None:
            more["user_action"] = "Check the provider's model and settings, or ask another one."
        super().__init__(message, **more)

    @property
    def retry(self) -> bool:
        return False
