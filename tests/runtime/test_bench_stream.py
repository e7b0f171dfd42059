"""`make bench-stream` measures what it says: every way in every round, and all frames counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import stream


@pytest.mark.triton
def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stream.main(["--rounds=2", "--seconds=1", "-o", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "stream.json").read_text())
    assert set(report["ms"]) == {"detector alone", "raw", "jpeg"}
    assert all(len(times) == 2 for times in (*report["ms"].values(), *report["stages"].values()))
    for form in ("raw", "jpeg"):
        rate = report["rates"][form]
        assert rate["submitted"] > rate["dropped"] >= 0
        assert rate["untouched"] == 0
        assert rate["fps"] > 0
    page = (tmp_path / "stream.md").read_text()
    assert page in capsys.readouterr().out
    assert "- At least 15 frames per second are wanted: " in page
    assert {"cpu", "cores", "load_before"} <= set(report["machine"])
