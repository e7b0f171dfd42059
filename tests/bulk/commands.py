"""Running ``python -m bulk`` as users do, and looking at what it left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet

ROOT = Path(__file__).resolve().parents[2]
FULL_SHARE = {"RAY_worker_niceness": "0"}
"""By default Ray's workers are nice, and would wait for everything else that runs on a machine."""
END_S = 600.0


@contextmanager
def start(*arguments: str | Path, workers: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A job that runs beside the test, and not after it."""
    command = [sys.executable, "-m", "bulk", *map(str, arguments), "--workers", str(workers)]
    job = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | FULL_SHARE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield job
    finally:
        job.kill()
        job.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and all that it said."""
    said, _ = process.communicate(timeout=END_S)
    return process.returncode, said


def bulk(*arguments: str | Path, workers: int = 1) -> tuple[int, str]:
    with start(*arguments, workers=workers) as job:
        return end(job)


def rows(output: Path) -> dict[str, dict[str, Any]]:
    """The manifest by path; there are no two rows of one picture."""
    parts = sorted((output / "_cutaway" / "manifest").glob("*.parquet"))
    found = [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]
    by_path = {row["path"]: row for row in found}
    assert len(by_path) == len(found), "a picture has two rows"
    return by_path


def files(output: Path) -> dict[str, int]:
    """Every cut-out there, with the time at which it was written (ns)."""
    found = [path for path in output.rglob("*") if path.is_file() and "_cutaway" not in path.parts]
    return {path.relative_to(output).as_posix(): path.stat().st_mtime_ns for path in found}


def wait_for(what: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """What a function returns, as soon as that is true; a process must not end before."""
    until = time.monotonic() + END_S
    while time.monotonic() < until:
        if found := what():
            return found
        assert process is None or process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def processes(process: subprocess.Popen[Any], name: str = "") -> list[int]:
    """Those that a command has started, by what they call themselves."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
    found: list[int] = []
    layer: Sequence[int] = [process.pid]
    while layer:
        layer = [pid for pid, parent in parents.items() if parent in layer]
        found += layer
    return [pid for pid in found if name in names.get(pid, "")]


def gone(pids: Sequence[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}/exe") for pid in pids)  # noqa: PTH110 - of zombies too
