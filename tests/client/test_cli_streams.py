"""A standard output that is full, or read by nobody: one line where somebody can read it, and an exit code.

Real redirections of a real shell, round the command as a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cutaway.cli import codes

from tests.client import commanding
from tests.client.answers import PNG
from tests.integration import picture_files as make

FULL = "standard output cannot be written: No space left on device\n"

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(make.jpeg())
    Path("bad.png").write_bytes(b"no")
    with commanding.answering() as url:
        monkeypatch.setenv(codes.URL_VARIABLE, url)
        yield


def shell(line: str, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """The command, as `cutaway` in a line for a shell."""
    return subprocess.run(
        line.replace("cutaway", f"{sys.executable} -m cutaway"),
        shell=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": unbuffered},
    )


@pytest.mark.parametrize(
    "line", ["health --json", "detect a.jpg", "cut a.jpg", "cut a.jpg --json", "cut a.jpg -o -", "--help"]
)
def test_standard_output_that_cannot_be_written(line: str) -> None:
    ended = shell(f"cutaway {line} > /dev/full")
    assert (ended.returncode, ended.stderr, ended.stdout) == (codes.FAILED, FULL, "")
    if line in ("cut a.jpg", "cut a.jpg --json"):
        assert Path("cutouts/a.png").read_bytes() == PNG, "what was made is kept"


@pytest.mark.parametrize("line", ["--version", "cut a.jpg --json", "detect --help"])
def test_without_a_buffer(line: str) -> None:
    """As containers often have it: each write fails by itself, instead of all at the end."""
    ended = shell(f"cutaway {line} > /dev/full", unbuffered="1")
    assert (ended.returncode, ended.stderr) == (codes.FAILED, FULL)


def test_a_run_ends_where_nobody_can_be_told() -> None:
    for number in range(9):
        Path(f"{number}.jpg").write_bytes(make.jpeg())
    ended = shell("cutaway cut *.jpg --json --jobs 1 > /dev/full")
    assert (ended.returncode, ended.stderr) == (codes.FAILED, FULL)
    assert len(list(Path("cutouts").glob("*.png"))) <= 3, "that one, and those in flight"


def test_a_picture_for_a_reader_that_has_gone() -> None:
    """Like any program in a pipe: nobody misses it, so there is nothing to say."""
    ended = shell("(sleep 0.5; cutaway cut a.jpg -o -; echo $? >&2) | true")
    assert ended.stderr == f"{codes.FAILED}\n"
