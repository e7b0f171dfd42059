"""`make bench-pipeline` measures what it says: batches as the pipeline uses them, and every stage in every round."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from benchmarks import pipeline, schedule


@pytest.mark.triton
def test_report(tmp_path: Path, samples: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main([str(samples[0]), "--rounds=2", "-o", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "pipeline.json").read_text())
    (picture,) = report["pictures"]
    assert picture["name"] == samples[0].name
    assert picture["people"] == 1
    assert picture["batches"] == {"yolov8_seg": 1, "birefnet_trt": 1}
    assert abs(picture["width_px"] * picture["height_px"] - 1_000_000) < 2000
    stages = picture["ms"]["stages"]
    assert {"decode", "detect", "matte", "refine", "encode", "total"} <= set(stages)
    for times in (picture["ms"]["pipeline"], *stages.values(), *picture["ms"]["models"].values()):
        assert len(times) == 2
    # Which of the two is quicker is not for a test to say, on a machine that does other work as well.
    together = [sum(each) for each in zip(*picture["ms"]["models"].values(), strict=True)]
    assert picture["ratio"] == pytest.approx(median(picture["ms"]["pipeline"]) / median(together))
    assert {"cpu", "cores", "load_before"} <= set(report["machine"])
    assert {"triton", "onnxruntime", "numpy", "python"} <= set(report["versions"])
    page = (tmp_path / "pipeline.md").read_text()
    assert page in capsys.readouterr().out
    assert "- Pipeline against models: " in page
    assert "- One person, one megapixel, JPEG: " in page


def test_problem_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.main(["--weights", str(tmp_path), "-o", str(tmp_path)]) == 1
    assert "yolov8_seg.onnx is missing" in capsys.readouterr().err


def test_schedules_are_compared_within_a_round() -> None:
    """The servers themselves: tests/runtime/test_schedule.py."""
    asked: list[bytes] = []

    class Recording:
        def cut(self, picture: bytes) -> None:
            asked.append(picture)

    assert schedule.throughput(Recording(), [b"a", b"b", b"c"], 2) > 0  # type: ignore[arg-type]
    assert len(asked) == 2 * schedule.REQUESTS_PER_CALLER
    assert set(asked) == {b"a", b"b", b"c"}
    host = {"cpu": "x", "cores": 2, "memory_gib": 1, "load_before": 0}
    told = {"date": "2026-11-30T00:00", "profile": "nano", "device": "cpu", "rounds": 2, "callers": 2}
    rates = {"per_second": {"free": [2.0, 4.0], "limited": [1.0, 4.0]}, "ratios": [0.5, 1.0]}
    page = schedule.markdown({**told, **rates, "machine": host, "versions": {}})
    assert "| limited | 2.50" in page
    assert "- limited against free, within a round: 0.75" in page
