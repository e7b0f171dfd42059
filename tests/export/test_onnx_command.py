"""`python -m export onnx`, as typed: what it refuses, and what is left when it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from export.__main__ import main
from export.onnx_models import CHECKSUMS, _swap

ROOT = Path(__file__).resolve().parents[2]


def test_what_to_fetch_is_told_as_it_has_to_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the detector and the folders that were asked for; before anything is exported."""
    given = ["--models", str(tmp_path), "--weights", str(tmp_path / "w"), "--detector", "x"]
    assert main(["onnx", "lite", *given]) == 2
    said = capsys.readouterr()
    assert f"python -m export fetch lite --detector x --output {tmp_path / 'w'}\n" in said.err
    assert "yolov8" not in said.out


def test_no_room_on_the_disk(tmp_path: Path) -> None:
    """One line and exit status 2; nothing of a half-written file is left."""

    limited = ["sh", "-c", 'ulimit -f 15000; exec "$@"', "sh"]  # units of 512 bytes
    command = [*limited, sys.executable, "-m", "export", "onnx", "nano", "--models", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"export: {tmp_path / 'nano'} cannot be written: ")
    assert done.stderr.count("\n") == 1
    assert {each.name for each in (tmp_path / "nano").iterdir()} == {".writing"}


def test_a_folder_that_is_being_replaced_is_not_whole(tmp_path: Path) -> None:
    """Were the change broken off, no server would take the mixture: its checksums go first and come last."""
    draft, folder = tmp_path / "draft", tmp_path / "folder"
    for place in (draft, folder):
        place.mkdir()
        for name in ("birefnet_trt.onnx", CHECKSUMS):
            (place / name).write_text(place.name)
    (folder / "yolov8_seg.fp16.onnx").write_text("stale")
    (folder / "my-own.onnx").write_text("the user's")
    (folder / "profile.json").mkdir()  # what cannot be replaced by a file
    (draft / "profile.json").write_text("{}")
    with pytest.raises(OSError, match=r"profile\.json"):
        _swap(draft, folder)
    assert not (folder / CHECKSUMS).exists()
    (folder / "profile.json").rmdir()
    (draft / "birefnet_trt.onnx").write_text("draft")  # made anew, as the next run does
    _swap(draft, folder)
    assert {each.name for each in folder.iterdir()} == {"birefnet_trt.onnx", "my-own.onnx", "profile.json", CHECKSUMS}
    assert (folder / CHECKSUMS).read_text() == "draft"
