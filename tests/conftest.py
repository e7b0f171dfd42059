"""Fixtures that several folders of tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A running server with the bundled models on free ports: a `runtime.server.Server`.

    One for the whole session: tests that harm a server start one of their own.
    """
    from runtime.server import Server, ServerOptions

    # Tests count what models did: the server's own small pictures would come in between.
    options = ServerOptions(profile="nano", cache_dir=tmp_path_factory.mktemp("runtime"), canary_interval_s=3600.0)
    with Server(options, say=print) as running:
        yield running


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """The sample pictures that come with the project."""
    return sorted((ROOT / "samples").glob("*.jpg"))
