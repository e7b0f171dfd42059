"""`make bench` compares what it says it compares, and its figures and intervals are what they are called."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import side_by_side
from benchmarks.floor import STAGES, Floor
from benchmarks.side_by_side import PEERS_PYTHON, in_turn, photograph, volley
from benchmarks.side_by_side_report import figure, percentile_99, ratio
from runtime.server import ServerOptions
from runtime.weights import load_networks


@pytest.mark.triton
def test_report(tmp_path: Path, samples: list[Path]) -> None:
    if not PEERS_PYTHON.is_file():
        pytest.skip("rembg's environment is not there: make bench creates it")
    arguments = [str(samples[0]), "--rounds=2", "--sizes", "0.1", "--clients", "1", "2", "-o", str(tmp_path)]
    assert side_by_side.main(arguments) == 0
    report = json.loads((tmp_path / "side-by-side.json").read_text())
    names = [each["name"] for each in report["contenders"]]
    assert [name.partition(",")[0] for name in names] == ["Cutaway"] * 4 + ["rembg s", "hand-made"]
    for clients in (1, 2):
        for name in names:
            (run,) = (each for each in report["runs"] if (each["clients"], each["contender"]) == (clients, name))
            assert len(run["latencies_ms"]) == len(run["per_second"]) == 2
            assert all(len(part) >= clients for part in run["latencies_ms"])
            assert all(ms > 0 for part in run["latencies_ms"] for ms in part)
    assert {each["contender"] for each in report["alpha_differences"]} == set(names)
    (floor,) = report["floor_ms"]
    assert tuple(floor["stages"]) == STAGES
    page = (tmp_path / "side-by-side.md").read_text()
    assert "- 0.1 MP, 2 clients, Cutaway, gRPC, all: " in page
    with Image.open(tmp_path / "side-by-side.png") as plot:
        assert plot.width > 1000


def test_missing_environment_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert side_by_side.main(["--peers-python", str(tmp_path / "python"), "-o", str(tmp_path)]) == 1
    assert "make bench creates it" in capsys.readouterr().err


def test_another_onnx_runtime_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'{"onnxruntime": "1.0"}\'\n')
    python.chmod(0o755)
    assert side_by_side.main(["--peers-python", str(python), "-o", str(tmp_path)]) == 1
    assert "the others run on ONNX Runtime 1.0" in capsys.readouterr().err


def test_floor_runs_the_networks(samples: list[Path]) -> None:
    networks = {name: network.path for name, network in load_networks(ServerOptions().weights_dir).items()}
    floor = Floor(networks, threads=1)
    picture = photograph(samples[0], 0.1)
    alpha = floor.alpha(picture)
    assert abs(alpha.size - 100_000) < 1000
    # Somebody is in the picture, and something is behind.
    assert alpha.min() < 10
    assert alpha.max() > 245
    times = floor.run(picture, np.zeros((*alpha.shape, 4), np.uint8))
    assert tuple(times) == STAGES
    assert min(times.values()) > 0


def test_clients_ask_at_once_and_each_waits_for_its_answer() -> None:
    lock = threading.Lock()
    now, most, asked = 0, 0, []

    def cut(data: bytes) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            asked.append(data)
        time.sleep(0.02)
        with lock:
            now -= 1
        return data

    latencies_ms, wall_s = volley(cut, [b"a", b"b"], clients=4, asks=3)
    assert most == 4
    assert len(latencies_ms) == 12
    assert min(latencies_ms) >= 20
    assert wall_s >= 0.06
    assert asked.count(b"a") == asked.count(b"b") == 6


def test_error_of_a_request_ends_the_run() -> None:
    def cut(data: bytes) -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        volley(cut, [b"a"], clients=2, asks=2)


def test_order_changes_and_everybody_is_first_once() -> None:
    steps: list[Callable[[], None]] = [lambda: None, lambda: None, lambda: None]
    orders = [in_turn(steps, number) for number in range(6)]
    assert all(set(order) == set(steps) for order in orders)
    assert {id(order[0]) for order in orders} == {id(order[-1]) for order in orders} == {id(step) for step in steps}


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        # Rounds differ from each other more than the requests of one round do.
        rounds = [(10 + rng.normal(0, 2) + rng.normal(0, 0.1, 20)).tolist() for _ in range(12)]
        found = figure(rounds)
        held += found.low <= 10 <= found.high
    assert 85 <= held <= 100


def test_ratio_is_taken_within_rounds() -> None:
    # The second round was ten times slower for both: their ratio is known exactly all the same.
    found = ratio([[2.0], [20.0], [2.0]], [[1.0], [10.0], [1.0]])
    assert found.value == 2.0
    assert (found.low, found.high) == (2.0, 2.0)
    assert ratio([[1.0, 9.0]], [[1.0, 3.0]], max).value == 3.0
    assert percentile_99(list(range(101))) == 99
