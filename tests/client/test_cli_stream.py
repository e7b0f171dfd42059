"""`cutaway stream` with a real server: every frame of a file comes back, and what goes wrong is told and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cutaway.cli import codes
from numpy.typing import NDArray

from tests.client.commanding import command, read_jsonl, run
from tests.integration import video

FRAMES = 4


@pytest.fixture
def clip(tmp_path: Path, samples: list[Path]) -> Path:
    """Somebody for four frames of 320 × 240."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (320, 240))
    frame = cv2.resize(video.still(next(sample for sample in samples if sample.stem == "astronaut")), (320, 240))
    for seed in range(FRAMES):
        writer.write(np.ascontiguousarray(video.noisy(frame, seed)[..., ::-1]))
    writer.release()
    return path


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    """(240, 320, 3) uint8 BGR each."""
    source, frames = cv2.VideoCapture(str(path)), []
    while (read := source.read())[0]:
        frames.append(read[1])
    assert source.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    return frames


@pytest.mark.triton
@pytest.mark.parametrize("kind", [".avi", ".mp4"])
def test_every_frame_of_a_file(server: Any, clip: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = clip.with_name(f"blue{kind}")
    assert (
        run("stream", str(clip), "-o", str(target), "--background", "#0000FF", "--json", "--url", server.grpc_url) == 0
    )
    (told,) = read_jsonl(capsys.readouterr().out)
    assert (told["submitted"], told["done"], told["dropped"], told["untouched"]) == (FRAMES, FRAMES, 0, 0)
    frames = frames_of(target)
    assert len(frames) == FRAMES
    for frame in frames:
        assert np.abs(frame[:40, -30:].astype(int) - (255, 0, 0)).mean() < 12  # the wall, in the codec's colours
        assert np.abs(frame[50:60, 140:150].astype(int) - (255, 0, 0)).mean() > 50  # the face


@pytest.mark.triton
def test_a_picture_behind(server: Any, clip: Path, samples: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    target = clip.with_name("behind.avi")
    assert run("stream", str(clip), "-o", str(target), "--background", str(samples[0]), "--url", server.grpc_url) == 0
    assert f"{target}: {FRAMES} frames, " in capsys.readouterr().out
    assert frames_of(target)[0][:40, -30:].std() > 2


def test_a_server_that_is_not_there(clip: Path) -> None:
    """The frames are written as they are, and the exit code says that this is no success."""
    target = clip.with_name("same.avi")
    ended = command("stream", str(clip), "-o", str(target), "--timeout-s", "5")
    assert ended.returncode == codes.UNAVAILABLE
    assert "frame 1 and others come back untouched: " in ended.stderr
    assert f"{FRAMES} untouched" in ended.stdout
    assert np.abs(frames_of(target)[0].astype(int) - frames_of(clip)[0]).mean() < 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clip.avi", "-o", "out.gif"], "-o names a video: .mp4, .avi, .mkv"),
        (["clip.avi", "-o", "clip.avi"], "clip.avi is there already; --overwrite"),
        (["clip.avi", "-o", "new.avi", "--background", "#12"], "'#12'"),
        (["clip.avi", "-o", "new.avi", "--background", "missing.jpg"], "missing.jpg"),
        (["clip.avi", "-o", "new.avi", "--smoothing", "7"], "0.0<=x<=0.95"),
    ],
)
def test_refusals(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(clip.parent)
    before = clip.read_bytes()
    assert run("stream", *arguments) == codes.USAGE
    assert words in capsys.readouterr().err
    assert clip.read_bytes() == before


def test_no_video(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.avi").write_text("no video")
    assert run("stream", str(tmp_path / "text.avi"), "-o", str(tmp_path / "o.avi")) == codes.FAILED
    assert "no frames can be read" in capfd.readouterr().err
    assert not (tmp_path / "o.avi").exists()
