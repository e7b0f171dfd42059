"""Whole runs against a real server: closed and open loop, several processes, bad pictures, and what they exit with."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from loadtest import records
from loadtest.__main__ import main
from runtime.health import statistics
from runtime.server import Server, ServerOptions
from tests.loadtest.logs import needs_locust

pytestmark = [pytest.mark.triton, needs_locust]

QUIET_S = 3.0
"""Longer than a picture takes, also on a machine with other work."""


def run(server: Server, folder: Path, *words: str, ways: tuple[str, ...] = ("grpc", "http")) -> tuple[int, dict, Path]:
    """The exit status, the run.json, and the folder that holds it."""
    urls = {"grpc": server.grpc_url, "http": server.http_url}
    command = [words[0], *(f"--url={urls[way]}" for way in ways), f"--metrics-url={server.metrics_url}"]
    status = main([*command, f"--output={folder}", *words[1:]])
    (found,) = folder.iterdir()
    return status, json.loads((found / "run.json").read_text()), found


def settle(server: Server) -> None:
    """Wait for what the tests before gave up: the server works on it still, and Triton counts it when it is over."""
    counted, since = -1, time.monotonic()
    while time.monotonic() - since < QUIET_S:
        now = statistics(server.probe, "ensemble_pipeline")["inference_count"]
        if now != counted:
            counted, since = now, time.monotonic()
        time.sleep(0.1)


def test_a_closed_loop_of_several_processes(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two workers, one report: every request of both is in it, those that end after the time is up included."""
    settle(server)
    status, found, folder = run(
        server,
        tmp_path,
        "single",
        "--seconds=4",
        "--users=4",
        "--workers=2",
        "--megapixels=0.3",
        "--max-error-rate=0",
        "--max-p95-ms=60000",
    )
    assert status == 0
    result = found["result"]
    log = records.read(folder / "single.requests.jsonl")
    assert result["answers"] == result["served"] == len(log) >= 4
    assert {record.way for record in log} == {"gRPC", "HTTP"}
    assert max(record.done_s for record in log) > result["begun_s"]
    # Triton counts a request only when it is over, and has counted as many.
    assert result["models"]["ensemble_pipeline"]["requests"] == pytest.approx(len(log), abs=1)
    assert result["models"]["birefnet_trt"]["mean_batch"] >= 1.0
    assert result["stages_ms"]["matte"]["p50"] > 1.0
    assert result["server"]["rss_mb_most"] > 100
    assert [text.split(": ")[::2] for text in found["thresholds"]] == [
        ["--max-p95-ms 60000", "kept"],
        ["--max-error-rate 0", "kept"],
    ]
    assert "report.html" in capsys.readouterr().out
    html = (folder / "report.html").read_text()
    assert "The server&#x27;s CPU and memory" in html and "<svg" in html


def test_an_open_loop_counts_the_wait(server: Server, tmp_path: Path) -> None:
    """One request at a time may be under way, and far more arrive than that serves: the wait is in the times."""
    status, found, folder = run(
        server,
        tmp_path,
        "single",
        "--loop=open",
        "--rate=40",
        "--seconds=4",
        "--max-in-flight=1",
        "--megapixels=0.3",
        "--max-p95-ms=0.01",
        ways=("grpc",),
    )
    assert status == 1, "a missed threshold decides the exit status"
    log = records.read(folder / "single.requests.jsonl")
    assert found["result"]["offered_per_s"] == pytest.approx(40, rel=0.4)
    sent = [record for record in log if record.served]
    last = max(sent, key=lambda record: record.late_ms)
    assert min(record.late_ms for record in sent) < 500 < last.late_ms, "somebody has waited for those before"
    assert last.latency_ms == pytest.approx(last.late_ms + (last.done_s - last.sent_s) * 1000, abs=0.01)
    assert found["result"]["latency_ms"]["max"] == pytest.approx(max(record.latency_ms for record in sent))
    # What never had its turn is no success, and is not left out either.
    assert {record.code for record in log} == {"", "NOT_SENT"}
    assert found["result"]["failures"] == len(log) - len(sent) > 0


def test_the_hostile_scenario_finds_a_wrong_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that lets bombs through: of all bad files only those are answered wrongly."""
    monkeypatch.setenv("CUTAWAY_MAX_DECOMPRESSION_RATIO", "1e9")
    with Server(ServerOptions(cache_dir=tmp_path / "cache", queue_size=8, canary_interval_s=3600.0)) as lenient:
        status, found, folder = run(
            lenient, tmp_path / "out", "hostile", "--requests=40", "--megapixels=0.3", "--users=3", "--max-error-rate=0"
        )
    assert status == 1
    log = records.read(folder / "hostile.requests.jsonl")
    assert len(log) == 40
    wrong = {record.kind for record in log if not record.expected}
    assert wrong == {"bad: IMAGE_BOMB"}
    right = {record.code for record in log if record.expected and not record.served}
    assert {"INVALID_FORMAT", "CORRUPT_IMAGE", "FILE_TOO_LARGE", "RESOLUTION_TOO_SMALL", "NO_PERSON_DETECTED"} <= right
    assert {"RESOLUTION_TOO_LARGE", "INVALID_OPTION"} <= right
    assert found["result"]["failures"] == sum(record.kind == "bad: IMAGE_BOMB" for record in log)
    assert "WRONG" in capsys.readouterr().out or found["result"]["failure_share"] > 0


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["single", "--url=ftp://localhost", f"--output={tmp_path}"])
    assert status == 2
    assert "grpc://HOST[:PORT]" in capsys.readouterr().err
    assert main(["single", "--loop=open", "--url=grpc://localhost:1"]) == 2
    assert "--rate" in capsys.readouterr().err
