"""Providers and chains asked in an event loop of their own, and an environment without tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from cutaway.contract.options import parse_options
from cutaway.fallback import Fallback, Served
from cutaway.providers import Provider
from cutaway.resilience import Deadline

from tests.client.hosted.asking import Server
from tests.client.hosted.peers import SIZE_WH, picture


@pytest.fixture(autouse=True)
def _no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUGGINGFACE_TOKEN", "HF_TOKEN", "REPLICATE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def matte() -> Callable[..., Any]:
    """Ask a provider for a matte."""

    def ask(provider: Provider, deadline_s: float = 10.0, data: bytes | None = None) -> Any:
        data = picture(size_wh=SIZE_WH) if data is None else data
        return asyncio.run(provider.matte(data, "image/png", Deadline(deadline_s)))

    return ask


@pytest.fixture
def infer() -> Callable[..., Served[Any]]:
    """Run a picture through a chain."""

    def run(
        fallback: Fallback,
        *,
        primary: Server | None = None,
        detect: Server | None = None,
        deadline_s: float = 10.0,
        data: bytes | None = None,
        **options: Any,
    ) -> Served[Any]:
        data = picture() if data is None else data
        parsed = parse_options(options)
        return asyncio.run(
            fallback.infer(data, options=parsed, deadline=Deadline(deadline_s), primary=primary, detect=detect)
        )

    return run
