"""Triton's rate limiter on a real server: never more runs of networks at a time than the schedule has."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from cutaway import Client
from PIL import Image

import runtime.compose
from runtime.compose import compose, read_config
from runtime.devices import Device, Plan
from runtime.health import canary_picture
from runtime.schedule import AT_A_TIME, SCHEDULES, Schedule, schedule_arguments
from runtime.server import Server, ServerOptions
from runtime.weights import load_networks

NETWORKS = {
    "detection": {"yolov8_seg", "yolov8_seg_free"},
    "matting": {"birefnet_trt", "u2netp"},
}

WATCH = """

_Network = TritonPythonModel


class TritonPythonModel(_Network):
    def execute(self, requests):
        import os
        import time

        begun = time.monotonic_ns()
        time.sleep(0.05)  # so that runs meet on any machine
        answers = super().execute(requests)
        with open(f"{LOGS}/{os.getpid()}", "a") as file:
            file.write(f"{self._name} {begun} {time.monotonic_ns()}\\n")
        return answers
"""


def runs_of(schedule: Schedule, folder: Path, sample: Path) -> dict[str, list[tuple[int, int]]]:
    """When each run of a network began and ended, by network, while four callers cut pictures out in both ways."""
    image = Image.open(sample).convert("RGB")
    image.thumbnail((320, 320))
    image.save(folder / "small.jpg")
    # Nobody is in noise: a network of its own mattes it.
    pictures = {"people": (folder / "small.jpg").read_bytes(), "all": canary_picture()}
    options = ServerOptions(instances=4, threads=1, schedule=schedule, canary_interval_s=3600.0, cache_dir=folder)
    with Server(options) as server, Client(server.grpc_url, timeout_s=120) as client:
        loaded = time.monotonic_ns()  # warm-ups do not pass the rate limiter

        def cut(subject: str) -> None:
            for _ in range(5):
                client.cut(pictures[subject], subject=subject)

        threads = [threading.Thread(target=cut, args=(subject,)) for subject in pictures for _ in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert (server.restarts, server.reloads) == (0, 0)
    found: dict[str, list[tuple[int, int]]] = {}
    for path in (folder / "logs").iterdir():
        for line in path.read_text().splitlines():
            name, begun, ended = line.split()
            if int(begun) > loaded:
                found.setdefault(name, []).append((int(begun), int(ended)))
    return found


def at_a_time(runs: list[tuple[int, int]]) -> int:
    """The most that ran at one moment."""
    steps = sorted([(begun, 1) for begun, _ in runs] + [(ended, -1) for _, ended in runs])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


@pytest.mark.triton
def test_runs_at_a_time(tmp_path: Path, samples: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With "free", it was seen that both matting networks run side by side, and one detector at a time."""
    logs, model = tmp_path / "logs", tmp_path / "model.py"
    logs.mkdir()
    model.write_text(runtime.compose.ONNX_MODEL.read_text() + WATCH.replace("{LOGS}", str(logs)))
    monkeypatch.setattr(runtime.compose, "ONNX_MODEL", model)
    found = runs_of("limited", tmp_path, samples[0])
    assert {"yolov8_seg", "birefnet_trt", "u2netp"} <= found.keys()
    for kind, names in NETWORKS.items():
        assert at_a_time([run for name in names for run in found.get(name, [])]) == AT_A_TIME[kind]


def test_repository_and_arguments(tmp_path: Path) -> None:
    networks = load_networks(ServerOptions().weights_dir)
    given = {"profile": "nano", "networks": networks, "device": Device("cpu", "cpu"), "plan": Plan(2, 1)}
    free, limited = (compose(tmp_path / each, **given, schedule=each) for each in SCHEDULES)  # type: ignore[arg-type]
    assert limited.instances == {**free.instances, "yolov8_seg": 2}
    for kind, names in NETWORKS.items():
        for name in names:
            (group,) = read_config(limited.folder / name).instance_group
            assert [(each.name, each.count) for each in group.rate_limiter.resources] == [(kind, 1)]
            assert not read_config(free.folder / name).instance_group[0].rate_limiter.resources
    assert not read_config(limited.folder / "ensemble_pipeline").instance_group[0].rate_limiter.resources
    assert schedule_arguments("free") == ()
    assert schedule_arguments("limited") == (
        "--rate-limit=execution_count",
        "--rate-limit-resource=detection:2",
        "--rate-limit-resource=matting:1",
    )
