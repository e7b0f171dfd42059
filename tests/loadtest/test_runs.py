"""Whole runs against a real server: closed and open loop, several processes, bad pictures, and what they exit with."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from loadtest.__main__ import UNLIMITED, main
from loadtest.figures import CODE
from runtime.health import statistics
from runtime.server import Server, ServerOptions
from tests.gateway.conftest import triton_of
from tests.loadtest.logs import needs_locust
from tests.service.services import service_before

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


def run_at(url: str, folder: Path, words: tuple[str, ...]) -> tuple[int, dict, Path]:
    status = main([words[0], f"--url={url}", "--metrics-url=", f"--output={folder}", *words[1:]])
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
        "--processes=2",
        "--megapixels=0.3",
        "--max-error-rate=0",
        "--max-p95-ms=60000",
    )
    assert status == 0
    result = found["result"]
    rows = json.loads((folder / "single.json").read_text())
    assert result["answers"] == result["served"] == result["sent"] >= 4
    assert {row["method"] for row in rows} == {"gRPC", "HTTP", "stage", "sender"}
    # Triton counts a request only when it is over, and has counted as many.
    assert result["models"]["ensemble_pipeline"]["requests"] == pytest.approx(result["answers"], abs=1)
    assert result["models"]["birefnet_trt"]["mean_batch"] >= 1.0
    assert result["stages_ms"]["matte"]["p50"] > 1.0
    assert result["server"]["rss_mb_most"] > 100
    assert [text.split(": ")[::2] for text in found["thresholds"]] == [
        ["--max-p95-ms 60000", "kept"],
        ["--max-error-rate 0", "kept"],
    ]
    assert "single.html" in capsys.readouterr().out
    assert "one person, 0.3 MP" in (folder / "single.html").read_text()
    assert f"Aggregated,{result['answers']}," in (folder / "single_stats.csv").read_text()


def test_an_open_loop_counts_the_wait(server: Server, tmp_path: Path) -> None:
    """One request at a time may be under way, and far more arrive than that serves: the wait is in the times."""
    status, found, _ = run(
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
    result = found["result"]
    # The last of them waited for all before it, and that wait is in its time.
    assert result["latency_ms"]["max"] > result["late_ms"]["max"] > result["late_ms"]["p50"]
    assert result["latency_ms"]["max"] >= result["late_ms"]["max"] + result["stages_ms"]["matte"]["p50"] / 2
    # What never had its turn is no success, and is not left out either.
    assert result["sent"] == result["served"]
    assert set(result["codes"]) == {"NOT_SENT"}
    assert result["failures"] == result["answers"] - result["served"] == result["codes"]["NOT_SENT"]["wrong"] > 0
    assert result["answers"] > 80, "forty arrived in each of four seconds"


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
    assert found["result"]["answers"] == 40
    rows = [row for row in json.loads((folder / "hostile.json").read_text()) if row["method"] in ("gRPC", "HTTP")]
    wrong = [row for row in rows if row["num_failures"]]
    assert {row["name"].partition(CODE)[0] for row in wrong} == {"bad: IMAGE_BOMB"}
    right = {code for code, each in found["result"]["codes"].items() if each["answers"] > each["wrong"]}
    assert {"INVALID_FORMAT", "CORRUPT_IMAGE", "FILE_TOO_LARGE", "RESOLUTION_TOO_SMALL", "NO_PERSON_DETECTED"} <= right
    assert {"RESOLUTION_TOO_LARGE", "INVALID_OPTION"} <= right
    assert found["result"]["failures"] == sum(row["num_failures"] for row in wrong) > 0
    assert "--max-error-rate 0: " in capsys.readouterr().out


def test_the_gateway_scenario_asks_the_http_service(server: Server, tmp_path: Path) -> None:
    """Refused files count as right, and a limit that was reached does not."""
    words = ("gateway", "--requests=40", "--users=4", "--think-s=0", "--megapixels=0.3", "--max-error-rate=0")
    with service_before(triton_of(server), *UNLIMITED) as free, service_before(triton_of(server)) as limited:
        status, found, folder = run_at(free.url, tmp_path / "free", words)
        stopped, over, _ = run_at(limited.url, tmp_path / "limited", words)
    assert status == 0
    assert found["result"]["answers"] == 40
    bad = {"INVALID_FORMAT", "CORRUPT_IMAGE", "RESOLUTION_TOO_SMALL", "IMAGE_BOMB"}
    assert set(found["result"]["codes"]) == bad
    kinds = {row["name"] for row in json.loads((folder / "gateway.json").read_text()) if row["method"] == "HTTP"}
    assert {"remove, 0.3 MP", "detect", "mask of people"} <= kinds
    assert found["result"]["stages_ms"]["total"]["p50"] > 1.0
    assert stopped == 1
    assert over["result"]["codes"]["RATE_LIMIT_EXCEEDED"]["wrong"] == over["result"]["failures"] > 0


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["single", "--url=ftp://localhost", f"--output={tmp_path}"])
    assert status == 2
    assert "grpc://HOST[:PORT]" in capsys.readouterr().err
    assert main(["single", "--loop=open", "--url=grpc://localhost:1"]) == 2
    assert "--rate" in capsys.readouterr().err
    assert (
        main(["single", "--url=grpc://localhost:1", "--metrics-url=", "--such-an-option", f"--output={tmp_path}"]) == 2
    )
    assert "--such-an-option" in capsys.readouterr().err
    assert main(["soak", "--requests=5", "--processes=2", "--url=grpc://localhost:1"]) == 2
    assert "--processes" in capsys.readouterr().err
