"""What servers leave behind: processes and shared memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from runtime.checks import SHM

GONE_S = 60
"""How long tests wait for what has to happen, on a machine however busy."""


def processes_of(cache_dir: Path) -> list[str]:
    """Command lines of the processes that belong to servers of a cache folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{cache_dir}/servers" in words:
                found.append(words)
    return found


def regions_of(cache_dir: Path) -> list[str]:
    """Shared memory of the servers of a cache folder."""
    names = [folder.name for folder in (cache_dir / "servers").iterdir()] if (cache_dir / "servers").is_dir() else []
    return [region.name for name in names for region in SHM.glob(f"cutaway-{name}-*")]


def wait_for(condition: Callable[[], object], seconds: float = GONE_S) -> bool:
    """Whether `condition` came true within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def assert_nothing_left(cache_dir: Path, seconds: float = 0.0) -> None:
    wait_for(lambda: not processes_of(cache_dir) and not regions_of(cache_dir), seconds)
    assert processes_of(cache_dir) == []
    assert regions_of(cache_dir) == []
