"""One more gate before the session's Triton."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.gates import GateProcess, gate_before


@pytest.fixture(scope="session")
def triton(server: Any) -> dict[str, str]:
    """The addresses of the session's Triton itself, by name."""
    return triton_of(server)


def triton_of(server: Any) -> dict[str, str]:
    return dict(zip(("http", "grpc", "metrics"), server._launcher.listen.targets, strict=True))


@pytest.fixture(scope="module")
def gate(triton: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateProcess]:
    with gate_before(triton, log=tmp_path_factory.mktemp("gate") / "log") as running:
        yield running


@pytest.fixture
def unharmed(server: Any, gate: GateProcess, samples: list[Any]) -> Iterator[None]:
    """The very same Triton serves afterwards, through the same gate."""
    before = server.process.pid
    yield
    assert server.process.pid == before
    assert server.process.exit_status() is None
    assert gate.process.poll() is None
    assert gate.cut(samples[0].read_bytes()).status_code == 200
