"""The access log: a line for each request and its outcome, and nothing that is a caller's."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cutaway import Client, Stream
from tritonclient.grpc import service_pb2, service_pb2_grpc
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from gateway.access import MAX_TEXT_CHARS, AccessLog, shorten
from gateway.tracing import Tracing
from runtime.gate import Gate
from runtime.logs import last_error
from runtime.process import Addresses
from runtime.runs import open_run
from tests.conftest import ROOT
from tests.gateway.conftest import triton  # noqa: F401 (a fixture)
from tests.gateway.gates import LIMIT_S, PIPELINE, by_hand, gate_before, post
from tests.service.services import REMOVE, Running, data_uri, service_before
from tests.service.test_jobs import finished, submitted
from tests.service.test_limits import new_key

AWAY = {"http": "127.0.0.1:9", "grpc": "127.0.0.1:9", "metrics": "127.0.0.1:9"}
GENEROUS = ("--free-per-minute=100000", "--free-per-second=100000")


@dataclass
class Logged:
    """A service, the log of its gate, and a key."""

    service: Running
    log: Path
    key: str

    def lines(self) -> list[dict[str, Any]]:
        return lines(self.log)

    def line(self, **wanted: Any) -> dict[str, Any]:
        """The only line with these fields, which is written in a moment."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            if found := [line for line in self.lines() if wanted.items() <= line.items()]:
                assert len(found) == 1, found
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"no line has {wanted}: {self.lines()}")


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().split("\n") if line.startswith("{") and line.endswith("}")]


@pytest.fixture(scope="module")
def logged(triton: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:  # noqa: F811
    folder = tmp_path_factory.mktemp("access")
    key, described = new_key("basic", "acme")
    (folder / "keys.toml").write_text(described)
    with service_before(triton, *GENEROUS, f"--keys={folder / 'keys.toml'}", log=folder / "log") as service:
        yield Logged(service, folder / "log", key)


# ------------------------------------------------------------------------------------------------------ what is served


@pytest.mark.triton
@pytest.mark.parametrize(
    ("protocol", "route", "status"),
    [
        ("grpc", "inference.GRPCInferenceService/ModelInfer", "OK"),
        ("http", f"POST /v2/models/{PIPELINE}/infer", 200),
    ],
)
def test_kserve(protocol: str, route: str, status: Any, logged: Logged, samples: list[Path]) -> None:
    gate, traced = logged.service.gate, f"00-{'c':0>32}-{'d':0>16}-01"
    with Client({"grpc": gate.grpc_url, "http": gate.http_url}[protocol], headers={"traceparent": traced}) as client:
        result = client.cut(samples[0], request_id=f"order-{protocol}")
    line = logged.line(request_id=f"order-{protocol}")
    told = {name: line[name] for name in ("protocol", "route", "model", "code", "status", "trace_id")}
    assert told == {
        "protocol": protocol,
        "route": route,
        "model": PIPELINE,
        "code": "OK",
        "status": status,
        "trace_id": f"{'c':0>32}",  # also where nothing is exported
    }
    assert line["request_bytes"] > samples[0].stat().st_size
    assert line["response_bytes"] > len(result.images[0])
    assert line["stage_ms"] == pytest.approx(result.timings_ms, abs=0.06)
    assert line["total_ms"] >= line["stage_ms"]["total"]
    assert line["time"].startswith("20") and line["time"].endswith("+00:00")


@pytest.mark.triton
def test_the_service_names_the_key_and_the_tier(logged: Logged, samples: list[Path]) -> None:
    headers = {"X-API-Key": logged.key, "X-Request-ID": "form-1"}
    answer = logged.service.remove(samples[0].read_bytes(), headers=headers)
    assert answer.headers["x-request-id"] == "form-1"
    line = logged.line(request_id="form-1")
    assert (line["protocol"], line["route"], line["code"], line["status"]) == ("service", f"POST {REMOVE}", "OK", 200)
    assert (line["key"], line["tier"], line["pictures"]) == ("acme", "basic", {"OK": 1})
    assert line["response_bytes"] == len(answer.content)
    assert line["stage_ms"]["matte"] > 0
    own = logged.service.remove(samples[0].read_bytes()).headers["x-request-id"]
    line = logged.line(request_id=own)
    assert (line["tier"], "key" in line, len(own)) == ("free", False, 32)


@pytest.mark.triton
def test_a_batch_is_one_line_with_its_pictures_outcomes(logged: Logged, samples: list[Path]) -> None:
    files = [("images", ("a.jpg", samples[0].read_bytes())), ("images", ("b.jpg", b"no picture"))]
    answer = logged.service.post(f"{REMOVE}-batch", files=files, headers={"X-Request-ID": "batch-1"})
    assert answer.status_code == 200
    assert logged.line(request_id="batch-1")["pictures"] == {"OK": 1, "INVALID_FORMAT": 1}


@pytest.mark.triton
def test_a_job_has_a_line_of_its_own(logged: Logged, samples: list[Path]) -> None:
    for name, picture, code in (("job-1", samples[0].read_bytes(), "OK"), ("job-2", b"no picture", "INVALID_FORMAT")):
        headers = {"X-Request-ID": name, "X-API-Key": logged.key}
        answer = logged.service.post(f"{REMOVE}-async", files={"image": ("a.jpg", picture)}, headers=headers)
        task = answer.json()
        finished(logged.service, task["check_url"])
        taken, line = logged.line(request_id=name, protocol="service"), logged.line(request_id=name, protocol="job")
        assert (taken["status"], taken["code"]) == (202, "OK")
        assert (line["code"], line["key"], line["tier"]) == (code, "acme", "basic")
        assert line["pictures"] == {code: 1}
        assert ("stage_ms" in line) is (code == "OK")
        # Whoever knows a job's id reads its cut-out.
        assert task["task_id"] not in logged.log.read_text()
    assert logged.line(route="GET /api/background-removal/status/{task_id}", request_id=_last_status_id(logged))


def _last_status_id(logged: Logged) -> str:
    asked = logged.service.get("/api/background-removal/status/none")
    assert asked.status_code == 404
    return asked.headers["x-request-id"]


@pytest.mark.triton
def test_a_stream_has_lines_for_its_ends(logged: Logged, samples: list[Path]) -> None:
    before, frame = len(logged.lines()), samples[0].read_bytes()
    with Stream(logged.service.gate.grpc_url, background="#00FF00", timeout_s=60) as stream:
        for _ in range(4):
            stream.submit(frame)
            assert stream.latest(timeout_s=60) is not None
    with Client(logged.service.gate.grpc_url) as client:
        client.cut(samples[0], request_id="after-the-stream")
    logged.line(request_id="after-the-stream")
    found = [line for line in logged.lines()[before:] if line.get("model") == "stream_pipeline"]
    assert [line["code"] for line in found] == ["OK", "OK"]  # its first frame, and its end


@pytest.mark.triton
def test_a_live_view_is_one_line(logged: Logged, samples: list[Path]) -> None:
    url = f"ws://127.0.0.1:{logged.service.port}/api/live"
    with connect(url, additional_headers={"X-Request-ID": "live-1", "X-API-Key": logged.key}) as socket:
        socket.send(json.dumps({"background": "#00FF00"}))
        for _ in range(3):
            socket.send(samples[0].read_bytes())
            json.loads(socket.recv(timeout=LIMIT_S))
            frame = socket.recv(timeout=LIMIT_S)
    line = logged.line(request_id="live-1")
    assert (line["route"], line["code"], line["key"]) == ("WS /api/live", "OK", "acme")
    assert line["pictures"]["OK"] >= 3  # and the stream's end
    assert line["response_bytes"] > len(frame) > 0
    with connect(url, additional_headers={"X-Request-ID": "live-2"}) as socket:
        socket.send("no options")
        assert "error" in json.loads(socket.recv(timeout=LIMIT_S))
    assert logged.line(request_id="live-2")["code"] == "INVALID_OPTION"
    with pytest.raises(InvalidStatus):
        connect(url, origin="http://elsewhere.example", additional_headers={"X-Request-ID": "live-3"})
    assert logged.line(request_id="live-3")["code"] == "FORBIDDEN"


@pytest.mark.triton
def test_health_checks_and_the_pages_files_have_no_line(logged: Logged) -> None:
    before, service = len(logged.lines()), logged.service
    for path in ("/", "/page/style.css", "/api/background-removal/health"):
        assert service.get(path).status_code == 200
    for path in ("/v2/health/live", "/v2/health/ready", "/v2", f"/v2/models/{PIPELINE}"):
        assert httpx.get(service.gate.http_url + path, timeout=LIMIT_S).status_code == 200
    assert service.get("/page/none.css").status_code == 404
    logged.line(route="GET /page/none.css", code="NOT_FOUND", status=404)
    assert len(logged.lines()) == before + 1


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.triton
def test_refusals_at_the_gate(logged: Logged) -> None:
    gate = logged.service.gate
    for request, code, status in (
        (post("/v2/models/none/infer"), "NOT_FOUND", 404),
        (post(f"/v2/models/{PIPELINE}/infer", "Content-Encoding: gzip"), "INVALID_OPTION", 415),
        (post(f"/v2/models/{PIPELINE}/ready"), "NOT_FOUND", 405),
        (post("/v2/repository/index"), "NOT_FOUND", 405),
        (post(f"/v2/models/{PIPELINE}/infer", "Content-Length: 99999999"), "INVALID_OPTION", 400),
        (post(f"/v2/models/{PIPELINE}/infer", "Origin: http://elsewhere.example"), "FORBIDDEN", 403),
    ):
        before = len(logged.lines())
        assert f" {status} ".encode() in by_hand(gate.http, request)
        until = time.monotonic() + LIMIT_S
        while len(logged.lines()) == before and time.monotonic() < until:
            time.sleep(0.02)
        (line,) = logged.lines()[before:]
        assert (line["protocol"], line["code"], line["status"]) == ("http", code, status)
    with grpc.insecure_channel(gate.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(service_pb2.ModelInferRequest(model_name=PIPELINE, id="no-inputs"), timeout=LIMIT_S)
    line = logged.line(request_id="no-inputs")
    assert (line["code"], line["status"], line["model"]) == ("INVALID_OPTION", "INVALID_ARGUMENT", PIPELINE)
    assert gate.cut(b"\xff\xd8\xff\xe0" + bytes(500)).status_code == 400
    logged.line(protocol="http", code="CORRUPT_IMAGE")


@pytest.mark.triton
def test_refusals_of_the_service(logged: Logged, triton: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    service = logged.service
    form = {"image": ("a.jpg", b"no picture", "image/jpeg")}
    for number, (path, given, code, status) in enumerate(
        (
            (REMOVE, {"files": form}, "INVALID_FORMAT", 400),
            (REMOVE, {"files": form, "data": {"subject": "cat"}}, "INVALID_OPTION", 400),
            (REMOVE, {}, "INVALID_OPTION", 400),
            (REMOVE, {"content": b"", "headers": {"Content-Encoding": "gzip"}}, "INVALID_FORMAT", 400),
            (REMOVE, {"content": bytes(16 * 2**20)}, "FILE_TOO_LARGE", 413),
            (REMOVE, {"files": form, "headers": {"Host": "rebound.example"}}, "FORBIDDEN", 403),
            ("/api/none", {}, "NOT_FOUND", 404),
            ("/api/images/none", {}, "METHOD_NOT_ALLOWED", 405),
            ("/v1.0/removebg", {}, "INVALID_OPTION", 400),
            ("/api/ai/hd-image", {"json": {"image": "x"}}, "NOT_CONFIGURED", 404),
        )
    ):
        headers = {**given.pop("headers", {}), "X-Request-ID": f"refused-{number}"}
        answer = service.post(path, headers=headers, **given)
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, f"refused-{number}")
        line = logged.line(request_id=f"refused-{number}")
        assert (line["protocol"], line["code"], line["status"]) == ("service", code, status)

    log = tmp_path / "log"
    with service_before(triton, "--free-per-minute=1", "--max-bytes=4", log=log) as small:
        assert small.remove(b"no picture").status_code == 400
        assert small.remove(b"no picture").status_code == 429
        assert small.gate.cut(b"no picture").status_code == 503
    assert [line["code"] for line in lines(log)] == ["INVALID_FORMAT", "RATE_LIMIT_EXCEEDED", "OVERLOADED"]
    with service_before(triton, "--keys-required", log=log) as closed:
        assert closed.remove(b"no picture", headers={"X-API-Key": "s3cret-guess"}).status_code == 401
    assert lines(log)[-1]["code"] == "UNAUTHORIZED"
    with service_before(AWAY, log=log) as away:
        assert away.gate.cut(b"no picture").status_code == 503
    assert (lines(log)[-1]["code"], lines(log)[-1]["status"]) == ("UNAVAILABLE", 503)
    assert "s3cret" not in log.read_text()


# ------------------------------------------------------------------------------------------------ what strangers write


@pytest.mark.triton
@pytest.mark.parametrize("hostile", ['a\n{"code": "OK"}', "a\x1b[2Ja", "\u2028\u202eé😀", '"}', "x" * 5000])
def test_hostile_ids_stay_in_their_field(hostile: str, logged: Logged, samples: list[Path]) -> None:
    before, service = len(logged.log.read_bytes().splitlines()), logged.service
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["no picture"]}
    assert service.gate.infer(json={"id": hostile, "inputs": [image]}).status_code == 400
    header = hostile.translate({10: " ", 27: " "}).encode()  # which no HTTP parser lets into one
    service.post(REMOVE, headers={"X-Request-ID": header})
    service.get("/" + "".join(f"%{byte:02x}" for byte in hostile.encode()[:500]))
    until = time.monotonic() + LIMIT_S
    while len(logged.log.read_bytes().splitlines()) < before + 3 and time.monotonic() < until:
        time.sleep(0.02)
    raw = logged.log.read_bytes().splitlines()[before:]
    assert len(raw) == 3
    for line in raw:
        assert line.isascii() and str(line, "ascii").isprintable() and len(line) < 4096
        told = json.loads(line)
        assert all(len(told.get(name, "")) <= MAX_TEXT_CHARS for name in ("request_id", "route"))
        assert told["code"] != "OK"


@pytest.mark.triton
def test_no_secret_and_no_picture_is_told(logged: Logged, samples: list[Path]) -> None:
    service, picture = logged.service, samples[0].read_bytes()
    url = "https://bucket.s3.example/photo.jpg?X-Amz-Credential=AKIASECRET&X-Amz-Signature=c0ffee"
    headers = {"X-API-Key": logged.key, "Authorization": "Bearer t0ken"}
    person = {"person_id": 0, "bbox": {"x1": 0, "y1": 0, "x2": 400, "y2": 400}}
    chosen = {"image_url": data_uri(picture), "selected_person_ids": [0], "persons": [person]}
    for path, given in (
        (f"{REMOVE}?signature=c0ffee", {"files": {"image": ("my-secret-name.jpg", picture)}}),
        ("/v1.0/removebg", {"data": {"image_url": url}}),
        ("/v1.0/removebg", {"json": {"image_url": url.replace("https", "ftp")}}),
        ("/api/background/remove-selected-persons", {"json": chosen}),
        ("/api/background/remove-selected-persons", {"json": chosen | {"image_url": url}}),
        ("/api/ai/hd-image", {"json": {"image": data_uri(picture)}}),
        (f"/api/none?{url}", {}),
    ):
        service.post(path, headers=headers, **given)
    service.get(f"/api/images/{'k' * 32}", headers=headers)
    with Client(service.gate.http_url, token="t0ken", api_key=logged.key) as client:
        client.cut(samples[0], request_id="last-of-the-secrets")
    logged.line(request_id="last-of-the-secrets")
    told = logged.log.read_text()
    encoded = base64.b64encode(picture).decode()
    secrets = [logged.key, "t0ken", "AKIASECRET", "c0ffee", "s3.example", "my-secret-name", "k" * 32]
    for secret in (*secrets, encoded[:40], "base64", "JFIF"):
        assert secret not in told, secret
    assert "GET /api/images/{image_id}" in told


# ------------------------------------------------------------------------------------------------------- where it goes


@pytest.mark.triton
def test_off_writes_nothing(triton: dict[str, str], samples: list[Path], tmp_path: Path) -> None:  # noqa: F811
    with gate_before(triton, "--access-log=off", log=tmp_path / "log") as gate:
        assert gate.cut(samples[0].read_bytes()).status_code == 200
        assert gate.infer("none").status_code == 404
    assert (tmp_path / "log").read_text() == ""


def test_another_form_is_named() -> None:
    command = [sys.executable, "-m", "gateway", "--access-log=xml"]
    command += [f"--triton-{name}={address}" for name, address in AWAY.items()]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (1, "error: --access-log is json or off, not 'xml'\n")


def test_a_full_pipe_stops_no_request_and_is_told_of_later() -> None:
    """Nobody reads: requests go on; what did not fit is counted in the next line."""
    reading, writing = os.pipe()
    log = AccessLog("json", writing, Tracing(""))
    for _ in range(20_000):
        with log.entered("http", (), route="POST /x") as entry:
            entry.code = "OK"
    received = b""
    while b"lines_left_out" not in received:
        received = received[-200:] + os.read(reading, 65536)
        with log.entered("http", (), route="POST /x") as entry:
            entry.code = "OK"
    (told,) = (line for line in received.splitlines() if b"lines_left_out" in line)
    assert json.loads(told)["lines_left_out"] > 1000
    os.close(reading)
    log.close()
    os.close(writing)


def test_the_supervisor_gives_it_another_file(tmp_path: Path) -> None:
    """As containers do, whose standard output it goes to; what is no request's stays in the server's log."""
    run = open_run(tmp_path)
    with (tmp_path / "access.log").open("wb") as file:
        there = Addresses("127.0.0.1", 9, 9, 9)
        given: dict[str, Any] = {"request_s": 1, "drain_s": 1, "access_log_fd": file.fileno()}
        gate = Gate(there, Addresses("127.0.0.1", 0, 0, 0), run, **given)
        gate.launch()
        url = f"http://127.0.0.1:{gate.addresses.http}/v2/models/none/infer"
        assert httpx.post(url, timeout=LIMIT_S, trust_env=False).status_code == 404
        gate.stop()
    assert [line["code"] for line in lines(tmp_path / "access.log")] == ["NOT_FOUND"]
    assert "NOT_FOUND" not in run.log.read_text()
    run.close()


def test_a_line_is_no_reason_for_an_end() -> None:
    assert last_error('Segmentation fault\n{"code": "OK", "route": "POST /x"}\n') == "Segmentation fault"


def test_texts_are_cut_and_plain() -> None:
    assert shorten("a\x00b\x7f\u2028c" + "x" * 500) == "a?b??c" + "x" * (MAX_TEXT_CHARS - 6)


def test_submitted_jobs_of_an_older_gateway_are_worked_on(logged: Logged, samples: list[Path]) -> None:
    from gateway.service.observing import jobs_entry

    log = AccessLog("off", 2, Tracing(""))
    with jobs_entry(log)({"upload": "x"}) as entry:
        assert (entry.request_id, entry.protocol) == ("", "job")
    assert submitted(logged.service, samples[0].read_bytes())["status"] == "processing"
