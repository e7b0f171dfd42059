"""Shell completion: the scripts load in their shells and know the subcommands, options, choices and files.

bash is everywhere; zsh and fish are tried where they are installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cutaway.cli import codes
from cutaway.contract.limits import OPTIONS

from tests.client.commanding import run

pytest.importorskip("shtab")

ASK_BASH = """
source ./script
complete=$(complete -p cutaway | sed 's/.*-F \\([^ ]*\\).*/\\1/')
ask() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  $complete cutaway "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
  echo "${COMPREPLY[@]}"
}
"""

QUESTIONS = {
    ("cutaway", ""): ["completion", "composite", "cut", "detect", "health", "models", "stream", "upscale"],
    ("cutaway", "cut", "--subj"): ["--subject"],
    ("cutaway", "cut", "--subject", ""): sorted(OPTIONS["subject"].choices),
    ("cutaway", "cut", "pho"): ["photo.jpg"],
    ("cutaway", "cut", "-o", "fol"): ["folder"],
    ("cutaway", "composite", "--onto", "pho"): ["photo.jpg"],
    ("cutaway", "composite", "--place", "bottom-"): ["bottom-left", "bottom-right"],
    ("cutaway", "upscale", "--scale", ""): ["2", "4"],
    ("cutaway", "completion", ""): ["bash", "fish", "zsh"],
}


def _script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == codes.OK
    Path("script").write_text(capsys.readouterr().out)


def _needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").touch()
    Path("folder").mkdir()


def test_bash(capsys: pytest.CaptureFixture[str]) -> None:
    _needs("bash")
    _script("bash", capsys)
    asked = "\n".join("ask " + " ".join(f"'{word}'" for word in words) for words in QUESTIONS)
    ended = subprocess.run(
        ["bash", "--norc", "-c", ASK_BASH + asked], capture_output=True, text=True, timeout=60, check=True
    )
    found = [sorted(line.split()) for line in ended.stdout.splitlines()]
    assert dict(zip(QUESTIONS, found, strict=True)) == QUESTIONS


def test_fish(capsys: pytest.CaptureFixture[str]) -> None:
    _needs("fish")
    _script("fish", capsys)
    asked = "\n".join(f"complete -C '{' '.join(words)}' | cut -f1; echo ." for words in QUESTIONS)
    ended = subprocess.run(
        ["fish", "--no-config", "-c", "source ./script\n" + asked],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = [sorted(part.replace("/", "").split()) for part in ended.stdout.split(".\n")[:-1]]
    for words, expected in QUESTIONS.items():
        assert set(expected) <= set(found.pop(0)), words


def test_zsh(capsys: pytest.CaptureFixture[str]) -> None:
    _needs("zsh")
    _script("zsh", capsys)
    assert Path("script").read_text().startswith("#compdef cutaway")
    subprocess.run(["zsh", "-n", "script"], check=True, timeout=60)


def test_without_shtab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run("completion", "bash") == codes.FAILED
    assert "pip install 'cutaway[completion]'" in capsys.readouterr().err
