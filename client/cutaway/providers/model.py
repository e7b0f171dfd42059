"""A hosted model with its licence, and the token that reaches it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Model:
    """A hosted model.

    Attributes:
        name: as its provider names it.
        licence: of the weights, in words.
        commercial: whether that licence allows commercial use.
        inputs: what its provider needs beside the picture.
    """

    name: str
    licence: str = "not known to Cutaway: see the model's page"
    commercial: bool = True
    inputs: Mapping[str, Any] = field(default_factory=dict)


class Secret:
    """A token that shows itself nowhere but where it is used."""

    __slots__ = ("_value",)

    def __init__(self, value: str | None) -> None:
        self._value = value or None

    def __bool__(self) -> bool:
        return self._value is not None

    def __repr__(self) -> str:
        return "Secret(set)" if self._value else "Secret(none)"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a token is not pickled")

    def bearer(self) -> dict[str, str]:
        """The header that presents it; none where there is no token."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def scrub(self, text: str) -> str:
        """The text without the token, should somebody have echoed it."""
        return text.replace(self._value, "***") if self._value else text
