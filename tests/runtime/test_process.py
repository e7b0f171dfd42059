"""What the processes of a server inherit: Triton's allocator gives back, the models' keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.checks import MIB, check_machine
from runtime.process import ALLOCATOR, TRITON_ALLOCATOR, bundled_environment
from runtime.runs import MODEL_PROCESS

# Blocks that came from the system by themselves (glibc's `mallinfo2`), while one of 8 MiB is held.
HELD = """
import ctypes, json

libc = ctypes.CDLL(None)
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
Info = type("Info", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]})
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
before = libc.mallinfo2().hblks
held = libc.malloc(ctypes.c_size_t(%d))
print(json.dumps(libc.mallinfo2().hblks - before))
"""


def of_its_own(environment: dict[str, str], size_bytes: int, program: str | Path) -> int:
    """How many blocks a Python with this environment takes from the system for one of so many bytes."""
    done = subprocess.run(
        [program, "-c", HELD % size_bytes], env=environment, capture_output=True, text=True, check=True
    )
    return int(json.loads(done.stdout))


@pytest.fixture
def starter(tmp_path: Path) -> Path:
    """What starts a model process, laid out as for Triton with a Python in the stub's place."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "python").symlink_to(sys.executable)
    (tmp_path / "python").symlink_to(MODEL_PROCESS)
    return tmp_path / "python"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    return bundled_environment(check_machine())


def test_model_processes_keep_what_triton_gives_back(environment: dict[str, str], starter: Path) -> None:
    """An array of 8 MiB lies in a model process's heap, and by itself in Triton; a huge one by itself in either."""
    assert of_its_own(environment, 8 * MIB, starter) == 0
    assert of_its_own(environment, 80 * MIB, starter) == 1
    assert of_its_own(environment, 8 * MIB, sys.executable) == 1


def test_what_the_user_says_of_the_allocator_holds_for_all(monkeypatch: pytest.MonkeyPatch, starter: Path) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(4 * MIB))
    environment = bundled_environment(check_machine())
    for program in (starter, sys.executable):
        assert of_its_own(environment, 8 * MIB, program) == 1
        assert of_its_own(environment, 3 * MIB, program) == 0


@pytest.mark.triton
def test_allocators_of_a_running_server(server: Any) -> None:
    """As the processes themselves were started."""
    process = server.process
    assert process.stubs()
    for pid, wanted in [(process.pid, TRITON_ALLOCATOR), *((stub.pid, ALLOCATOR) for stub in process.stubs())]:
        entries = Path("/proc", str(pid), "environ").read_bytes().decode().split("\0")
        there = dict(entry.split("=", 1) for entry in entries if "=" in entry)
        assert {name: there[name] for name in wanted} == wanted
