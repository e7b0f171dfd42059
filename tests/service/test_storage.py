"""What is kept behind ids: in a folder, and on S3 as moto's server speaks it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.metrics import Metrics
from gateway.service.errors import ServiceProblem
from gateway.service.settings import KEEP_S
from gateway.service.storage import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "kept"), 1000, Metrics())


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket's URL; the environment has what its library asks for."""
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", "0"], stderr=log, stdout=log)
    try:
        until, port = time.monotonic() + 60, ""
        while not port and time.monotonic() < until:
            port = Path(log.name).read_text().partition("http://127.0.0.1:")[2].split("\n")[0].strip()
            time.sleep(0.1)
        endpoint = f"http://127.0.0.1:{port}"
        httpx.put(f"{endpoint}/pictures", trust_env=False).raise_for_status()
        given = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        given |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        os.environ.update(given)
        yield "s3://pictures/prefix"
        for name in given:
            del os.environ[name]
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def keeps(storage: Storage) -> None:
    async def run() -> None:
        name = await storage.put("cutouts", b"picture")
        assert name[0] == "c"
        assert len(name) == 33
        assert await storage.get(name) == b"picture"
        await storage.delete(name)
        with pytest.raises(ServiceProblem) as caught:
            await storage.get(name)
        assert caught.value.status == 404

    asyncio.run(run())


def test_a_folder_keeps(storage: Storage) -> None:
    keeps(storage)


def test_memory_keeps() -> None:
    keeps(Storage("memory:", 1000, Metrics()))


def test_s3_keeps(s3: str) -> None:
    keeps(Storage(s3, 1000, Metrics()))
    assert asyncio.run(Storage(s3, 1000, Metrics()).sweep()) == 0


@pytest.mark.parametrize("name", ["", "../../../etc/passwd", "c" * 33 + "/..", "x" + "a" * 32, "c" + "a" * 31, "c\x00"])
def test_no_other_name_reaches_the_store(storage: Storage, name: str) -> None:
    with pytest.raises(ServiceProblem):
        asyncio.run(storage.get(name))


def test_old_objects_are_swept_by_their_kinds_time(storage: Storage, tmp_path: Path) -> None:
    async def run() -> None:
        names = {kind: await storage.put(kind, b"x") for kind in KEEP_S}
        for kind, name in names.items():
            age_s = KEEP_S[kind] - 60 if kind == "uploads" else KEEP_S[kind] + 60
            os.utime(tmp_path / "kept" / kind / name, (time.time() - age_s,) * 2)
        assert await storage.sweep() == len(KEEP_S) - 1
        assert await storage.get(names["uploads"]) == b"x"

    asyncio.run(run())


def test_a_full_store_refuses_and_deleting_makes_room(storage: Storage) -> None:
    async def run() -> None:
        first = await storage.put("uploads", bytes(600))
        with pytest.raises(ServiceProblem) as caught:
            await storage.put("uploads", bytes(600))
        assert (caught.value.status, caught.value.code) == (503, "STORAGE_FULL")
        await storage.delete(first)
        await storage.put("uploads", bytes(600))

    asyncio.run(run())


def test_the_folder_is_private(storage: Storage, tmp_path: Path) -> None:
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
