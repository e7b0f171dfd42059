"""Warnings inside a successful answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cutaway.contract.limits import Tier


@dataclass(frozen=True)
class Notice:
    """One warning: a stable code, one sentence, and its figures (JSON values only)."""

    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "tier": int(Tier.MEDIUM), "details": self.details}
