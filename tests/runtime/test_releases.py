"""A Triton older than NVIDIA's security bulletins ask for is named, with the reason; a newer one is not."""

from __future__ import annotations

import pytest

from runtime.doctor import releases
from runtime.releases import BUNDLED, RELEASE_VARIABLE, release_here, release_warning
from tests.docker.parts import COMPOSE, DOCKERFILES, services


@pytest.mark.parametrize("release", ["24.10", "25.10", "26.06", "26.06.1", "", "latest", "26"])
def test_older_ones_are_named_with_the_reason(release: str) -> None:
    warning = release_warning(release)
    assert warning is not None
    assert release in warning and "CVE-2026-24206" in warning and "loopback" in warning


@pytest.mark.parametrize("release", ["26.07", "26.08", "26.10", "27.01", "26.07.1"])
def test_newer_ones_are_not(release: str) -> None:
    assert release_warning(release) is None


def test_the_release_is_the_images_or_the_bundled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RELEASE_VARIABLE, raising=False)
    assert release_here() == BUNDLED
    assert [finding.mark for finding in releases()] == ["warning"]
    monkeypatch.setenv(RELEASE_VARIABLE, "26.08")
    assert list(releases()) == []


def test_the_gpu_image_has_one_that_the_bulletins_allow_and_the_compose_file_names_the_other() -> None:
    release = services()["server"]["image"].partition(":")[2]
    assert release_warning(release) is None
    head = COMPOSE.read_text().partition("name: cutaway")[0]
    assert "Warning: Triton before 26.07" in head and "CVE-2026-24206" in head and "loopback" in head
    (gpu,) = [path for path in DOCKERFILES if path.suffix == ".gpu"]
    assert f"ARG TRITON_RELEASE={release}\n" in gpu.read_text()
