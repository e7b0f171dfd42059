"""Processes as /proc shows them: a server's model processes, what state they are in, why one ended, what they hold."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STUB_NAME = "triton_python_backend_stub"
TRITON_NAME = "tritonserver"
COMM_MAX = 15
"""Linux cuts the names of processes in /proc/PID/stat to this length."""


@dataclass(frozen=True)
class Stub:
    """A model process: its id, when it was started (clock ticks since boot), and its model."""

    pid: int
    start_ticks: int
    model: str


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says. `exit_status` is as `os.waitstatus_to_exitcode` takes it, of a zombie."""

    pid: int
    name: str
    state: str
    parent: int
    start_ticks: int
    exit_status: int


def stat(pid: int) -> Stat | None:
    """A process's state; None where there is none with this id."""
    try:
        head, _, tail = Path("/proc", str(pid), "stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return Stat(pid, head.partition("(")[2], fields[0], int(fields[1]), int(fields[19]), int(fields[-1]))


def all_stats() -> Iterator[Stat]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := stat(int(entry.name))) is not None:
            yield found


def stubs_of(triton: int) -> list[Stub]:
    """The model processes that the tritonserver with this process id has now."""
    found = []
    for each in all_stats():
        if each.parent == triton and each.state not in "ZX":
            with contextlib.suppress(OSError):
                words = Path("/proc", str(each.pid), "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(words[0])).name == STUB_NAME and len(words) > 1:
                    found.append(Stub(each.pid, each.start_ticks, _model_of(os.fsdecode(words[1]))))
    return found


def has_dead_stub(triton: int) -> bool:
    """Whether a model process has ended; before its model is loaded, Triton itself waits for it for ever."""
    return any(
        each.parent == triton and each.state == "Z" and each.name == STUB_NAME[:COMM_MAX] for each in all_stats()
    )


def triton_behind(pid: int) -> int:
    """The tritonserver that a gate on sockets stands in front of; the process itself where it is no such gate."""
    words = _words(pid)
    if "--triton-http" not in words:
        return pid
    listens = f"--http-address={words[words.index('--triton-http') + 1]}"
    return next((each.pid for each in all_stats() if each.name == TRITON_NAME and listens in _words(each.pid)), pid)


def children(pid: int) -> dict[int, str]:
    """The state of each child of a process."""
    return {each.pid: each.state for each in all_stats() if each.parent == pid}


def state_of(stub: Stub) -> str:
    """A letter as in /proc/PID/stat; "X" for one that is gone (its id may belong to another process since)."""
    found = stat(stub.pid)
    return "X" if found is None or found.start_ticks != stub.start_ticks else found.state


def is_gone(stub: Stub) -> bool:
    """Whether a model process has ended."""
    return state_of(stub) in "ZX"


def end_of(stub: Stub) -> str:
    """How an ended process ended, where its parent has not asked yet."""
    found = stat(stub.pid)
    if found is None or found.start_ticks != stub.start_ticks or found.state != "Z":
        return "is gone"
    return ending(os.waitstatus_to_exitcode(found.exit_status))


def ending(status: int) -> str:
    """An exit status in words; negative numbers and those from 129 on are signals."""
    number = -status if status < 0 else status - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
    return f"ended with status {status}"


def own_bytes(pid: int) -> int:
    """Memory of a process without files and shared memory; 0 where it has ended."""
    try:
        for line in Path("/proc", str(pid), "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def regions_of(pid: int, prefix: str) -> list[Path]:
    """Regions in /dev/shm whose names begin with `prefix` that a process has mapped."""
    try:
        lines = Path("/proc", str(pid), "maps").read_text().splitlines()
    except OSError:
        return []
    names = {line.split(maxsplit=5)[5] for line in lines if f"/{prefix}" in line}
    return [Path(name) for name in sorted(names) if not name.endswith(" (deleted)")]


def _words(pid: int) -> list[str]:
    """The command line of a process; empty where it has ended."""
    with contextlib.suppress(OSError):
        return os.fsdecode(Path("/proc", str(pid), "cmdline").read_bytes()).split("\0")
    return []


def _model_of(model_py: str) -> str:
    """The model's name from the path of its model.py: …/<name>/<version>/model.py."""
    parts = Path(model_py).parts
    return parts[-3] if len(parts) >= 3 else "a model"
