"""Folders: what is found in one, what is a name for one, and one run at a time in it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from cutaway.cli import codes
from cutaway.cli.claim import FolderInUse, claimed
from cutaway.cli.journal import JOURNAL

from tests.client import peers
from tests.client.commanding import run
from tests.client.own_server import Asked, OwnServer, own_server
from tests.integration import picture_files as make


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(codes.RATIO_VARIABLE, raising=False)
    for name in ("in/a.jpg", "in/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(make.jpeg())


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnServer]:
    with own_server("http") as server:
        monkeypatch.setenv(codes.URL_VARIABLE, server.url)
        yield server


# ----------------------------------------------------------------------------------------------------------- hidden


def test_what_is_hidden_is_taken_only_by_name(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/._a.jpg").write_bytes(b"\0\5\x16\7 what macOS leaves")
    Path("in/.thumbnails").mkdir()
    Path("in/.thumbnails/a.jpg").write_bytes(make.jpeg())
    assert run("cut", "in") == codes.OK
    assert run("cut", "in/*.jpg") == codes.OK
    assert sorted(path.name for path in Path("cutouts").iterdir()) == [JOURNAL, "a.png", "b.png"]
    assert "2 of 2 pictures done" in capsys.readouterr().err
    assert run("cut", "in/.thumbnails", "-o", "small") == codes.OK, "the folder itself was named"
    assert run("cut", "in/._a.jpg") == codes.FAILED
    assert "in/._a.jpg: INVALID_FORMAT" in capsys.readouterr().err


def test_a_folder_of_hidden_ones_only_has_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hidden").mkdir()
    Path("hidden/.a.jpg").write_bytes(make.jpeg())
    assert run("cut", "hidden") == codes.USAGE
    assert "no pictures in hidden" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cut", "-o", "x.gif"], "x.gif: GIF files cannot be written: name it x.png or x.webp"),
        (["cut", "-o", "new/x.TIFF"], "new/x.TIFF: TIFF files cannot be written: name it new/x.png or new/x.webp"),
        (["composite", "--onto", "#000000", "-o", "x.avif"], "name it x.png or x.webp or x.jpg"),
        (["upscale", "--fallback", "replicate", "-o", "x.heic"], "name it x.png or x.jpg or x.webp"),
    ],
)
def test_a_kind_that_cannot_be_written_is_no_folder(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "in/a.jpg") == codes.USAGE
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["in"]


def test_folders_may_be_called_anything(own: OwnServer) -> None:
    Path("x.gif").mkdir()
    assert run("cut", "in/a.jpg", "-o", "x.gif") == codes.OK
    assert run("cut", "in/a.jpg", "-o", "holiday.2026") == codes.OK
    assert Path("x.gif/a.png").exists()
    assert Path("holiday.2026/a.png").exists()


# --------------------------------------------------------------------------------------------------- one at a time


def test_a_folder_that_comes_and_goes_is_held_by_one() -> None:
    """A lock is of a file's number: it must be that of the folder that is there, not of one just removed."""
    at_work, together, held = [0], [0], [0]

    def run_often() -> None:
        for _ in range(500):
            with suppress(FolderInUse), claimed(Path("new/out")):
                at_work[0] += 1
                held[0] += 1
                together[0] += at_work[0] > 1
                time.sleep(0)
                at_work[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run_often) for _ in range(4)]:
            future.result(30)
    assert held[0] > 100
    assert together[0] == 0


def test_a_second_run_in_a_folder_ends_at_once(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    first, over = threading.Event(), threading.Event()

    def script(_: Asked) -> None:
        first.set()
        over.wait(60)

    own.script = script
    process = subprocess.Popen([sys.executable, "-m", "cutaway.cli", "cut", "in", "--jobs", "1", "--timeout-s", "60"])
    try:
        assert first.wait(60)
        assert run("cut", "in") == codes.FAILED
        said = capsys.readouterr().err
        assert said == (
            "cutouts: another run of cutaway is at work in this folder: wait for its end, or name another one with -o\n"
        )
        assert len(own.asked) == 1, "nothing was sent"
        over.set()
        assert run("cut", "in", "-o", "elsewhere") == codes.OK, "another folder is nobody's"
    finally:
        over.set()
        assert process.wait(60) == codes.OK
    assert run("cut", "in") == codes.OK
    assert "0 of 2 pictures done; 2 skipped" in capsys.readouterr().err


def test_a_folder_is_free_when_its_run_was_killed() -> None:
    holding = "import sys\nfrom pathlib import Path\nfrom cutaway.cli.claim import claimed\n"
    holding += "with claimed(Path('out')):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    with subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse), claimed(Path("out")):
            pass
        process.kill()
        process.wait(20)
    with claimed(Path("out")):
        assert Path("out").is_dir()
    assert Path("out").is_dir(), "it was there before"


def test_a_run_that_makes_nothing_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{peers.dead_port()}"
    assert run("cut", "in", "-o", "new/deep", "--retries", "0", "--url", url) == codes.UNAVAILABLE
    assert run("cut", "none", "-o", "new/deep") == codes.USAGE
    assert run("cut", "in", "-o", "new/deep", "--url", "nonsense") == codes.USAGE
    assert sorted(path.name for path in Path().iterdir()) == ["in"]
