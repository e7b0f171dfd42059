"""`make size` counts what a commit has, before and after, and says where a bound is missed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import size


def test_table(tmp_path: Path) -> None:
    def commit(files: dict[str, str]) -> str:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        who = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
        for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "files"]):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
        return size._git(tmp_path, "rev-parse", "--short", "HEAD").decode().strip()

    before = commit({"client/cutaway/a.py": "a\n\nb\n", "docs/deep/x.md": "one two\nthree", "docs/x.svg": "no words"})
    commit({"client/cutaway/new/b.py": "c\n" * 8000, "README.md": "four", "client/other.py": "d\n"})
    (tmp_path / "client/cutaway/a.py").write_text("not committed\n" * 9)
    text = size.table(before, tmp_path)
    assert "| `client/cutaway`, lines | 1 | 3 | 2 | 8,003 | 7,500: **missed** |" in text
    assert "| documentation, words | 1 | 3 | 2 | 4 | 16,000: met |" in text


def test_an_unknown_commit_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert size.main(["--against", "nothing"]) == 1
    assert "there is no commit nothing here" in capsys.readouterr().err
