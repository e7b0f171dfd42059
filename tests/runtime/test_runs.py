"""Each server has a folder and shared memory of its own: dead servers' are cleared, living ones' are not touched."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.checks import SHM, RuntimeProblem
from runtime.runs import LOGS_KEPT, PLAIN_PATH, Run, default_cache_dir, open_run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = open_run(tmp_path)
    yield run
    run.close()


def leave_traces(run: Run) -> Path:
    """A repository, a log and shared memory, as a running server has them."""
    (run.repository / "model").mkdir(parents=True)
    run.log.write_text("said\n")
    region = SHM / f"{run.shm_prefix}region"
    region.touch()
    return region


def test_closing_keeps_the_log_only(run: Run) -> None:
    region = leave_traces(run)
    run.close()
    assert sorted(path.name for path in run.folder.iterdir()) == ["lock", "server.log"]
    assert not region.exists()


def test_traces_of_a_dead_server_are_cleared(tmp_path: Path, run: Run) -> None:
    region = leave_traces(run)
    os.close(run.lock)  # as the system does it when a process is killed
    run.lock = -1
    other = open_run(tmp_path)
    assert not region.exists()
    assert not run.repository.exists()
    other.close()


def test_traces_of_a_living_server_stay(tmp_path: Path, run: Run) -> None:
    region = leave_traces(run)
    other = open_run(tmp_path)
    other.close()
    assert region.exists()
    assert run.repository.exists()


def test_shared_memory_of_others_stays(run: Run) -> None:
    foreign = SHM / f"cutaway-test-{os.getpid()}"
    foreign.touch()
    try:
        run.close()
        assert foreign.exists()
    finally:
        foreign.unlink()


def test_the_last_logs_are_kept(tmp_path: Path) -> None:
    folders = []
    for _ in range(LOGS_KEPT + 3):
        run = open_run(tmp_path)
        run.log.write_text("said\n")
        run.close()
        folders.append(run.folder)
    assert sum(folder.exists() for folder in folders) == LOGS_KEPT + 1
    assert folders[-1].exists()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, for this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("name", ["a space", "[bracket]", "d'apostrophe", "Été", "$HOME;&"])
def test_triton_is_given_a_plain_path(tmp_path: Path, temporary: Path, name: str) -> None:
    run = open_run(tmp_path / name)
    leave_traces(run)
    assert PLAIN_PATH.fullmatch(str(run.repository))
    assert run.repository.samefile(run.folder / "repository")
    assert run.repository.parent.parent.stat().st_mode & 0o077 == 0
    run.close()
    assert not list(temporary.iterdir())
    assert sorted(path.name for path in run.folder.iterdir()) == ["lock", "server.log"]


def test_the_plain_path_of_a_dead_server_is_cleared(tmp_path: Path, temporary: Path) -> None:
    run = open_run(tmp_path / "a space")
    os.close(run.lock)
    open_run(tmp_path / "a space").close()
    assert not list(temporary.iterdir())


def test_without_a_plain_path_it_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(RuntimeProblem, match=r"special characters or is long; .* --cache-dir DIR"):
        open_run(tmp_path / "a space")
    assert not list((tmp_path / "a space" / "servers").iterdir())


def test_nobody_else_looks_into_it(run: Run) -> None:
    for path in (run.folder, run.sockets):
        assert path.stat().st_mode & 0o077 == 0


def test_sockets_have_short_paths_however_long_the_folder_is(tmp_path: Path, temporary: Path) -> None:
    cache = tmp_path / ("long" * 30) / ("longer" * 20)
    run = open_run(cache)
    assert len(str(run.sockets / "grpc:2")) <= 107
    (run.sockets / "http").touch()
    folder = run.sockets
    run.close()
    assert not folder.exists()


def test_cache_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache_dir(tmp_path) == tmp_path / ".cache" / "runtime"
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir(tmp_path) == tmp_path / "xdg" / "cutaway"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir(tmp_path) == Path.home() / ".cache" / "cutaway"
