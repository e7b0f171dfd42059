"""Folders: what is found in one, and what is a name for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cutaway.cli import codes

from tests.client import peers
from tests.client.commanding import run
from tests.client.own_server import OwnServer, own_server
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
    assert sorted(path.name for path in Path("cutouts").iterdir()) == ["a.png", "b.png"]
    assert "2 of 2 pictures done" in capsys.readouterr().err
    assert run("cut", "in/.thumbnails", "-o", "small") == codes.OK, "the folder itself was named"
    assert run("cut", "in/._a.jpg") == codes.FAILED
    assert "in/._a.jpg: INVALID_FORMAT" in capsys.readouterr().err


def test_a_folder_of_hidden_ones_only_has_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    Path("hidden").mkdir()
    Path("hidden/.a.jpg").write_bytes(make.jpeg())
    assert run("cut", "hidden") == codes.USAGE
    assert "there is no picture in 'hidden'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ names


def test_folders_may_be_called_anything(own: OwnServer) -> None:
    Path("x.gif").mkdir()
    assert run("cut", "in/a.jpg", "-o", "x.gif") == codes.OK
    assert run("cut", "in/a.jpg", "-o", "holiday.2026") == codes.OK
    assert Path("x.gif/a.png").exists()
    assert Path("holiday.2026/a.png").exists()


def test_a_run_that_makes_nothing_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{peers.dead_port()}"
    assert run("cut", "in", "-o", "new/deep", "--retries", "0", "--url", url) == codes.UNAVAILABLE
    assert run("cut", "none", "-o", "new/deep") == codes.USAGE
    assert run("cut", "in", "-o", "new/deep", "--url", "nonsense") == codes.USAGE
    assert sorted(path.name for path in Path().iterdir()) == ["in"]
