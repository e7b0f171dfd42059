"""Jobs in the background: in the process, and on a real Redis, where they survive the gateway that took them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.service.services import LIMIT_S, Running, opened, service_before

REMOVE_ASYNC = "/api/background-removal/remove-async"


def finished(service: Running, check_url: str) -> dict[str, Any]:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        found: dict[str, Any] = service.get(check_url).json()
        if found["status"] in ("completed", "failed"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"the job did not finish: {found}")


def submitted(service: Running, *pictures: bytes) -> dict[str, Any]:
    answer = service.post(REMOVE_ASYNC, files=[("image", (f"{i}.jpg", data)) for i, data in enumerate(pictures)])
    assert answer.status_code == 202
    found: dict[str, Any] = answer.json()
    assert found["status"] == "processing"
    return found


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis of one's own: its URL and process."""
    if shutil.which("redis-server") is None:
        assert not os.environ.get("CI"), "CI installs redis-server"
        pytest.skip("needs redis-server (Debian, Ubuntu: apt install redis-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as (url, _):
        yield url


def test_a_job_ends_with_a_picture(service: Running, samples: list[Path]) -> None:
    found = finished(service, submitted(service, samples[0].read_bytes())["check_url"])
    assert (found["status"], found["percentage"]) == ("completed", 100)
    cutout = service.get(found["result"]["image_url"])
    assert opened(cutout.content).mode == "RGBA"
    assert found["result"]["processing_info"]["background_removed"] is True


def test_a_job_that_fails_says_why(service: Running) -> None:
    found = finished(service, submitted(service, b"no picture")["check_url"])
    assert (found["status"], found["error"]["error_code"]) == ("failed", "INVALID_FORMAT")


def test_a_batch_is_watched_over_a_web_socket(service: Running, samples: list[Path]) -> None:
    job = submitted(service, samples[0].read_bytes(), b"no picture")
    states = []
    with connect(service.url.replace("http", "ws") + job["progress_url"]) as socket:
        for message in socket:
            states.append(json.loads(message))
    assert states[-1]["percentage"] == 100
    assert states[-1]["result"]["done"] == states[-1]["result"]["total"] == 2
    assert [task["status"] for task in states[-1]["result"]["tasks"]] == ["completed", "failed"]


def test_an_unknown_job_is_404(service: Running) -> None:
    assert service.get("/api/background-removal/status/nothing").status_code == 404
    with connect(f"{service.url.replace('http', 'ws')}/api/progress/nothing") as socket:
        assert json.loads(socket.recv())["status"] == "unknown"


def test_another_page_may_not_watch(service: Running) -> None:
    with (
        pytest.raises(Exception, match=r"403|1008"),
        connect(
            f"{service.url.replace('http', 'ws')}/api/progress/nothing", origin="https://evil.example.com"
        ) as socket,
    ):
        socket.recv()


def test_too_many_unfinished_jobs_are_refused(triton: dict[str, str], samples: list[Path]) -> None:
    with service_before(triton, "--jobs", "2", "--free-per-second", "100") as service:
        data = [samples[0].read_bytes()] * 6
        answer = service.post(REMOVE_ASYNC, files=[("image", ("a.jpg", each)) for each in data])
        assert (answer.status_code, answer.json()["error_code"]) == (503, "OVERLOADED")


def test_jobs_survive_the_gateway_that_took_them(
    triton: dict[str, str], samples: list[Path], redis_url: str, tmp_path: Path
) -> None:
    options = ("--redis-url", redis_url, "--storage", str(tmp_path / "pictures"), "--job-reclaim-s", "3")
    more = ("--free-per-second", "1000", "--free-per-minute", "1000")
    with (
        service_before(triton, *options, *more, log=tmp_path / "first") as first,
        service_before(triton, *options, *more, log=tmp_path / "second") as second,
    ):
        jobs = [submitted(first, samples[0].read_bytes()) for _ in range(6)]
        first.gate.process.send_signal(signal.SIGKILL)
        first.gate.process.wait(30)
        for job in jobs:
            found = finished(second, job["check_url"])
            assert found["status"] == "completed"
            assert second.get(found["result"]["image_url"]).status_code == 200


def test_jobs_are_finished_or_left_by_a_gateway_that_ends(
    triton: dict[str, str], samples: list[Path], redis_url: str, tmp_path: Path
) -> None:
    """None waits for a dead gateway's jobs to be taken over, and none is done twice."""
    options = ("--redis-url", f"{redis_url}/2", "--storage", str(tmp_path / "pictures"), "--job-reclaim-s", "600")
    more = ("--free-per-second", "1000", "--free-per-minute", "1000")
    with service_before(triton, *options, *more) as first:
        jobs = [submitted(first, samples[0].read_bytes()) for _ in range(12)]
        first.gate.process.send_signal(signal.SIGTERM)
        assert first.gate.process.wait(LIMIT_S) == 0
        with service_before(triton, *options, *more) as second:
            states = [finished(second, job["check_url"]) for job in jobs]
    assert {state["status"] for state in states} == {"completed"}
    assert len(list((tmp_path / "pictures" / "cutouts").iterdir())) == len(jobs)


def test_limits_are_shared_by_gateways_on_redis(triton: dict[str, str], redis_url: str) -> None:
    options = ("--redis-url", f"{redis_url}/1", "--free-per-second", "1000", "--free-per-minute", "5")
    with service_before(triton, *options) as first, service_before(triton, *options) as second:
        codes = [service.remove(b"no picture").status_code for service in (first, second) * 3]
        assert codes == [400] * 5 + [429]


def test_a_gateway_that_finds_no_redis_says_so_in_one_line(triton: dict[str, str], tmp_path: Path) -> None:
    with (
        pytest.raises(json.JSONDecodeError),
        service_before(triton, "--redis-url", "redis://127.0.0.1:1", log=tmp_path / "log"),
    ):
        pass
    assert (tmp_path / "log").read_text().startswith("error: Redis at redis://127.0.0.1:1 does not answer")


def test_where_redis_goes_away_pictures_are_cut_and_jobs_refused(
    triton: dict[str, str], samples: list[Path], tmp_path: Path
) -> None:
    with redis_server(tmp_path) as (url, redis), service_before(triton, "--redis-url", url) as service:
        assert service.remove(samples[0].read_bytes()).status_code == 200
        redis.kill()
        redis.wait(30)
        assert service.remove(samples[0].read_bytes()).status_code == 200
        answer = service.post(REMOVE_ASYNC, files={"image": samples[0].read_bytes()})
        assert (answer.status_code, answer.json()["error_code"]) == (503, "UNAVAILABLE")


@pytest.mark.parametrize("path", ["/api/live", "/api/progress/any"])
def test_a_page_whose_name_turns_to_this_address_opens_no_socket(service: Running, path: str) -> None:
    name = f"rebound.example:{service.port}"
    peer = socket.create_connection(("127.0.0.1", service.port))
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://{name}{path}", sock=peer, origin=f"http://{name}")
