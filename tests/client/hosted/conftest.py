"""Providers asked through each driver, and an environment without tokens."""

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


@pytest.fixture(params=["threads", "asyncio"])
def matte(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Ask a provider for a matte, once through each driver: what holds for one has to hold for the other."""

    def ask(provider: Provider, deadline_s: float = 10.0, data: bytes | None = None) -> Any:
        data = picture(size_wh=SIZE_WH) if data is None else data
        if request.param == "threads":
            try:
                return provider.matte(data, "image/png", Deadline(deadline_s))
            finally:
                provider.close()
        return asyncio.run(_ask(provider, data, deadline_s))

    return ask


async def _ask(provider: Provider, data: bytes, deadline_s: float) -> Any:
    return await provider.matte_async(data, "image/png", Deadline(deadline_s))


@pytest.fixture(params=["threads", "asyncio"])
def infer(request: pytest.FixtureRequest) -> Callable[..., Served[Any]]:
    """Fallback.infer and Fallback.infer_async: what holds for one has to hold for the other."""

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
        try:
            if request.param == "threads":
                return fallback.infer(
                    data, options=parsed, deadline=Deadline(deadline_s), primary=primary, detect=detect
                )

            async def main() -> Served[Any]:
                return await fallback.infer_async(
                    data,
                    options=parsed,
                    deadline=Deadline(deadline_s),
                    primary=primary and primary.asynchronously,
                    detect=detect and detect.asynchronously,
                )

            return asyncio.run(main())
        finally:
            fallback.close()

    return run
