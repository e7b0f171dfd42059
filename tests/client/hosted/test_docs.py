"""docs/hosted-fallback.md: numbers are those of the table; docs/client/servers.md has those of retries and breakers.

Its Python runs in tests/client/test_readme_sdk.py.
"""

from __future__ import annotations

import re
from pathlib import Path

from cutaway.contract import limits
from cutaway.providers import HuggingFace, Provider, Replicate, Space

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "hosted-fallback.md").read_text()


def test_its_table_of_tiers() -> None:
    providers: tuple[type[Provider], ...] = (HuggingFace, Replicate, Space)
    for number, name in enumerate(limits.TIER_TIMEOUTS_S, start=1):
        assert re.search(rf"^\| {number} \|.*\| {limits.TIER_TIMEOUTS_S[name]:.0f} s \|", PAGE, re.MULTILINE)
    for provider in providers:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {provider.tier} | `{provider.__name__}`"))
        assert provider.cost in row
        assert all(f"`{variable}`" in row for variable in provider.token_variables)


def test_its_numbers() -> None:
    for words in (
        f"waited for up to {limits.RETRY_AFTER_MAX_S:g} s",
        f"{limits.COLD_START_TRIES} tries at most",
        "at most 1440p by 2 or 4",
    ):
        assert words in " ".join(PAGE.split()), words
