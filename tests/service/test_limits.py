"""API keys, limits by caller, and what strangers' pages may do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.gateway.gates import by_hand
from tests.runtime.leftovers import wait_for
from tests.service.services import LIMIT_S, Running, service_before


def new_key(tier: str, name: str) -> tuple[str, str]:
    """A key, and its lines, by the command."""
    command = [sys.executable, "-m", "gateway", "--new-key", tier, name]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    return told.splitlines()[0].rpartition(" ")[2], told.partition("--keys:\n")[2]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path, keys = tmp_path_factory.mktemp("keys") / "keys.toml", {}
    for tier in ("basic", "pro"):
        keys[tier], lines = new_key(tier, f"a-{tier}-customer")
        with path.open("a") as file:
            file.write(lines)
    return path, keys


@pytest.fixture(scope="module")
def keyed(triton: dict[str, str], keys: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    with service_before(triton, "--keys", str(keys[0]), "--keys-required") as running:
        yield running


def test_a_clock_that_is_set_back_locks_nobody_out(triton: dict[str, str], tmp_path: Path, samples: list[Path]) -> None:
    """The minute would else end when the time comes again: an hour later."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        assert not os.environ.get("CI"), "CI installs faketime"
        pytest.skip("needs libfaketime (Debian, Ubuntu: apt install faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1"}
    with service_before(triton, "--free-per-second", "1000", **faked, DONT_FAKE_MONOTONIC="1") as service:
        assert [service.remove(b"no picture").status_code for _ in range(31)] == [400] * 30 + [429]
        clock.write_text("-3600")
        assert wait_for(lambda: service.remove(b"no picture").status_code == 400, LIMIT_S)
        assert service.remove(samples[0].read_bytes()).status_code == 200


def test_the_31st_request_of_a_minute_is_refused(triton: dict[str, str]) -> None:
    with service_before(triton, "--free-per-second", "1000") as service:
        answers = [service.remove(b"no picture") for _ in range(30)]
        assert [answer.status_code for answer in answers] == [400] * 30
        assert answers[-1].headers["x-ratelimit-remaining"] == "0"
        refused = service.remove(b"no picture")
        form = refused.json()
        assert refused.status_code == 429
        assert form["detail"] == "Rate limit exceeded: 30 requests per minute"
        assert form["error_code"] == "RATE_LIMIT_EXCEEDED"
        assert form["requests_remaining"] == 0
        assert 0 < form["retry_after_seconds"] <= 60
        assert form["limit_reset_at"].startswith("20")
        assert int(refused.headers["retry-after"]) >= 1
        assert service.post("/v1.0/removebg").json()["errors"][0]["code"] == "rate_limit_exceeded"
        people = service.post("/api/background/remove-selected-persons").json()
        assert people["error"]["code"] == "RATE_LIMIT_EXCEEDED"
        assert service.get("/api/background-removal/health").status_code == 200


def test_four_requests_of_a_second_are_served_and_not_refused(service: Running, triton: dict[str, str]) -> None:
    with service_before(triton) as paced:
        assert [paced.remove(b"no picture").status_code for _ in range(4)] == [400] * 4


def test_without_a_key_nothing_is_done_where_keys_are_required(keyed: Running) -> None:
    for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": b"\xe9"}):
        answer = keyed.remove(b"no picture", headers=headers)
        assert (answer.status_code, answer.json()["error_code"]) == (401, "UNAUTHORIZED")
    removebg = keyed.post("/v1.0/removebg", data={"image_file_b64": "AAAA"})
    assert (removebg.status_code, removebg.json()["errors"][0]["code"]) == (403, "auth_failed")
    assert keyed.get("/v1.0/account").status_code == 403


def test_a_key_has_the_limit_of_its_tier(keyed: Running, keys: tuple[Path, dict[str, str]]) -> None:
    for tier, limit in (("basic", "100"), ("pro", "1000")):
        answer = keyed.remove(b"no picture", headers={"X-API-Key": keys[1][tier]})
        assert (answer.status_code, answer.headers["x-ratelimit-limit"]) == (400, limit)


def test_the_key_file_holds_no_key(keys: tuple[Path, dict[str, str]]) -> None:
    assert not any(key in keys[0].read_text() for key in keys[1].values())


def test_an_address_is_believed_from_trusted_proxies_alone(triton: dict[str, str]) -> None:
    def remaining(service: Running, address: str) -> str:
        return str(service.remove(b"x", headers={"X-Forwarded-For": address}).headers["x-ratelimit-remaining"])

    with service_before(triton) as plain:
        assert [remaining(plain, f"203.0.113.{number}") for number in (1, 2)] == ["29", "28"]
    with service_before(triton, "--trusted-proxies", "127.0.0.1") as proxied:
        assert [remaining(proxied, f"203.0.113.{number}") for number in (1, 2, 1)] == ["29", "29", "28"]


def test_other_names_of_the_host_and_other_pages_get_nothing(service: Running) -> None:
    assert service.get("/", headers={"Host": "evil.example.com"}).status_code == 403
    answer = service.get("/api/background-removal/health", headers={"Origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in answer.headers


def test_pages_of_named_origins_may_call(triton: dict[str, str]) -> None:
    with service_before(triton, "--origins", "https://app.example.com") as service:
        answer = service.get("/api/background-removal/health", headers={"Origin": "https://app.example.com"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"


def test_a_silent_connection_is_closed_and_a_packed_body_refused(triton: dict[str, str]) -> None:
    with service_before(triton, "--header-timeout-s", "1", "--body-timeout-s", "1") as service:
        begun = time.monotonic()
        assert by_hand(service.port, b"POST / HTTP/1.1\r\n") == b""
        assert time.monotonic() - begun < LIMIT_S
        head = b"POST /api/background-removal/remove HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
        head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        assert b" 408 " in by_hand(service.port, head)[:20]
        packed = httpx.post(service.url + "/v1.0/removebg", content=b"x", headers={"Content-Encoding": "gzip"})
        assert packed.status_code in (400, 415)
