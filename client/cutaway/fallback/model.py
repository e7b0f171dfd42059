"""A hosted model with its licence, and the token that reaches it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from cutaway.contract.errors import InvalidOption

UNKNOWN_LICENCE = "not known to Cutaway: see the model's page"
BRIA_LICENCE = "CC BY-NC 4.0 or Bria's licence: not for commercial use without one"

_BRIA = re.compile(r"briaai/|.*rmbg", re.IGNORECASE)
"""Names of Bria's weights, whoever serves them."""

_TOKEN = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True)
class Model:
    """A hosted model.

    Attributes:
        name: as its provider names it.
        licence: of the weights, in words.
        commercial: whether that licence allows commercial use.
        inputs: the provider's parameters beside the picture.
    """

    name: str
    licence: str = UNKNOWN_LICENCE
    commercial: bool = True
    inputs: Mapping[str, Any] = field(default_factory=dict)


def by_name(model: Model) -> Model:
    """The model with the licence of Bria's weights where its name is one of theirs and it has none."""
    if model.licence == UNKNOWN_LICENCE and _BRIA.match(model.name):
        return replace(model, licence=BRIA_LICENCE, commercial=False)
    return model


class Secret:
    """A token that is masked in every representation; white space around it is dropped.

    Raises:
        InvalidOption: it has a character that no token has, such as a space; it is not shown.
    """

    def __init__(self, value: str, of: str) -> None:
        if not _TOKEN.fullmatch(value.strip()):
            allowed = "printable ASCII without spaces"
            details = {"name": "token", "value": "not shown", "allowed": allowed}
            raise InvalidOption(f"The token of {of} has to be {allowed}.", details=details)
        self._value = value.strip()

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(set)" if self._value else "Secret(none)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not pickled")

    def bearer(self) -> dict[str, str]:
        """The ``Authorization`` header; none without a token."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def scrub(self, text: str) -> str:
        """The text with the token masked, in case a service echoed it."""
        return text.replace(self._value, "***") if self._value else text
