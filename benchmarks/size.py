"""How large the project is, before and after: lines of Python and words of documentation, from git (`make size`).

    python -m benchmarks.size                 # the commit before the SDK became smaller, and what is committed now
    python -m benchmarks.size --against main

Blank lines and docstrings count; words are what lies between white space.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BEFORE = "8634530"
NOW = "HEAD"


class Part(NamedTuple):
    """A row: the files whose path matches, what of them is counted, and the most that is wanted."""

    name: str
    paths: str
    words: bool = False
    bound: int | None = None


PARTS = (
    Part("`client/cutaway`, lines", r"client/cutaway/.*\.py", bound=7500),
    Part("`loadtest`, lines", r"loadtest/.*\.py", bound=2000),
    Part("`benchmarks`, lines", r"benchmarks/.*\.py", bound=2500),
    Part("`export`, lines", r"export/.*\.py"),
    Part("`tests/client` and `tests/integration`, lines", r"tests/(client|integration)/.*\.py"),
    Part(
        "documentation, words",
        r"((client/|export/)?README|ARCHITECTURE|CONTRIBUTING|CHANGELOG)\.md|docs/.*\.md",
        words=True,
        bound=16000,
    ),
)


def count(part: Part, revision: str, root: Path = ROOT) -> tuple[int, int]:
    """Files, and their lines or words, of a part in a commit."""
    listed = _git(root, "ls-tree", "-r", "-z", "--name-only", revision).decode().split("\0")
    paths = [path for path in listed if re.fullmatch(part.paths, path)]
    texts = [_git(root, "show", f"{revision}:{path}") for path in paths]
    return len(paths), sum(len(text.split()) if part.words else text.count(b"\n") for text in texts)


def table(before: str, root: Path = ROOT) -> str:
    """The table in Markdown."""
    lines = [f"| | files at {before} | | files now | | at most |", "|---|--:|--:|--:|--:|---|"]
    for part in PARTS:
        (old_files, old), (files, new) = count(part, before, root), count(part, NOW, root)
        met = "" if part.bound is None else f"{part.bound:,}: {'met' if new <= part.bound else '**missed**'}"
        lines.append(f"| {part.name} | {old_files} | {old:,} | {files} | {new:,} | {met} |")
    return "\n".join(lines)


def _git(root: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.size", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--against", metavar="REV", default=BEFORE, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        _git(ROOT, "rev-parse", "--verify", f"{options.against}^{{commit}}")
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"error: there is no commit {options.against} here: {error}", file=sys.stderr)
        return 1
    print(table(options.against))
    return 0


if __name__ == "__main__":
    sys.exit(main())
