"""One service before the session's Triton, whose limits no test reaches by accident."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.conftest import triton  # noqa: F401 (a fixture)
from tests.service.services import Running, service_before


@pytest.fixture(scope="session")
def service(triton: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:  # noqa: F811
    log = tmp_path_factory.mktemp("service") / "log"
    with service_before(triton, "--free-per-minute", "100000", "--free-per-second", "100000", log=log) as running:
        yield running
