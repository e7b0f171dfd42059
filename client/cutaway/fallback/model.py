"""A hosted model with its licence, and the token that reaches it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cutaway.contract.errors import InvalidOption

UNKNOWN_LICENCE = "not known to Cutaway: see the model's page"
BRIA_LICENCE = "CC BY-NC 4.0 or Bria's licence: not for commercial use without one"

_BRIA = re.compile(r"briaai/|fal-ai/bria/|.*rmbg", re.IGNORECASE)  # its weights' names, whoever serves them


@dataclass(frozen=True)
class Model:
    """A hosted model: its `name` at its provider, the `licence` of its weights in words, whether that allows
    `commercial` use, and the provider's `inputs` beside the picture."""

    name: str
    licence: str = UNKNOWN_LICENCE
    commercial: bool = True
    inputs: Mapping[str, Any] = field(default_factory=dict)


def by_name(model: Model) -> Model:
    """The model with the licence of Bria's weights where its name is one of theirs and it has none."""
    known = model.licence != UNKNOWN_LICENCE or not _BRIA.match(model.name)
    return model if known else replace(model, licence=BRIA_LICENCE, commercial=False)


class Secret:
    """A token that is masked in every representation, and in the error where a character in it is no token's."""

    def __init__(self, value: str, of: str) -> None:
        if not re.fullmatch(r"[\x21-\x7e]*", value.strip()):
            details = {"name": "token", "value": "not shown", "allowed": "printable ASCII without spaces"}
            raise InvalidOption(f"The token of {of} has to be {details['allowed']}.", details=details)
        self._value = value.strip()

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "set" if self._value else "none"

    def bearer(self) -> dict[str, str]:
        """The ``Authorization`` header; none without a token."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def scrub(self, text: str) -> str:
        """The text with the token masked, in case a service echoed it."""
        return text.replace(self._value, "***") if self._value else text
