"""The wheel, built once, and installed into an empty environment for each Python that is to be tried."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packaging.environments import SUPPORTED, Installed, build, find_python, install, wanted_versions


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session", params=wanted_versions(), ids=lambda version: f"python{version}")
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    version = request.param
    if version not in SUPPORTED:
        pytest.skip(f"the wheel is not for Python {version}")
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no python{version} on the PATH or in pyenv's folder")
    return install(version, python, wheel, tmp_path_factory.mktemp(f"python{version}-"))
