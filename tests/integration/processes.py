"""What the server's processes hold in memory, from /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def server_processes() -> dict[int, str]:
    """Triton and its models' processes below this one: process id → "tritonserver" or "stub"."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text()
            parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().partition(b"\0")[0].decode()
        except OSError:  # it ended meanwhile
            continue
    return {
        pid: "stub" if "stub" in command else "tritonserver"
        for pid, command in commands.items()
        if re.search(r"tritonserver$|backend_stub$", command) and _descends(pid, parents)
    }


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == os.getpid():
            return True
    return False


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def peak_bytes(pid: int) -> int:
    """The most that was resident since :func:`forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
