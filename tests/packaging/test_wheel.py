"""The wheel in an empty environment: small, complete, typed, and it cuts.

`make test-wheel` tries every supported Python that this machine has.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cutaway import __version__

from tests.packaging.environments import ROOT, Installed

CONSUMER = Path(__file__).with_name("consumer.py")
MAX_DOWNLOAD_BYTES = 60_000_000
HEAVY = ("torch", "onnxruntime", "nvidia-pytriton", "opencv", "scipy", "pandas", "transformers", "tensorflow")

IMPORT_ALL = """
import importlib, pkgutil, cutaway
for module in pkgutil.walk_packages(cutaway.__path__, "cutaway."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if "pip install 'cutaway[" not in str(error):  # what an extra brings
                raise
        print(module.name)
"""


def test_download_is_small(installed: Installed, capsys: pytest.CaptureFixture[str]) -> None:
    downloaded = sum(wheel.stat().st_size for wheel in installed.wheels)
    on_disk = sum(file.lstat().st_size for file in installed.site_packages.rglob("*") if file.is_file())
    with capsys.disabled():
        print(
            f"\nPython {installed.version}: {len(installed.wheels)} wheels, {downloaded / 1e6:.1f} MB to download, "
            f"{on_disk / 1e6:.0f} MB on disk"
        )
    assert downloaded < MAX_DOWNLOAD_BYTES


def test_nothing_heavy_comes_along(installed: Installed) -> None:
    names = {wheel.name.partition("-")[0].replace("_", "-").lower() for wheel in installed.wheels}
    assert {"cutaway", "httpx", "numpy", "pillow", "click", "tritonclient", "grpcio"} <= names
    assert not [name for name in names if name.startswith(HEAVY)]


def test_every_module_imports(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("python", "-W", "error", "-c", IMPORT_ALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"cutaway.client", "cutaway.async_client", "cutaway.fallback.space"} <= set(done.stdout.split())


def test_command_says_its_version(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("cutaway", "--version", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"cutaway {__version__}\n"), done.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("import cutaway.observers; cutaway.observers.OpenTelemetry()", "otel"),
        ("import cutaway.observers; cutaway.observers.Prometheus()", "prometheus"),
    ],
)
def test_missing_extra_is_named(installed: Installed, tmp_path: Path, code: str, extra: str) -> None:
    done = installed.run("python", "-c", code, folder=tmp_path)
    assert done.returncode != 0
    assert f"cutaway[{extra}]" in done.stderr


@pytest.mark.triton
def test_cuts(installed: Installed, server, samples: list[Path], tmp_path: Path) -> None:
    """The command and a program of somebody's own, against the real server."""
    shutil.copy(samples[1], tmp_path / "photo.jpg")
    done = installed.run("cutaway", "cut", "photo.jpg", "-o", "cutouts", "--url", server.grpc_url, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (cutout,) = (tmp_path / "cutouts").glob("*.png")
    assert cutout.read_bytes().startswith(b"\x89PNG")

    for url in (server.grpc_url, server.http_url):
        done = installed.run("python", "-W", "error", CONSUMER, url, "photo.jpg", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert Path(told.pop("home")).is_relative_to(installed.site_packages)
        assert told == {
            "version": __version__,
            "channels": 3,
            "people": 1,
            "code": "INVALID_OPTION",
            "many": 2,
            "provider": "triton",
        }


def test_mypy_knows_the_types(installed: Installed, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--strict", "--config-file", "", "--cache-dir", ROOT / ".cache" / "mypy-wheel"),
            *("--python-executable", installed.python, CONSUMER),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
