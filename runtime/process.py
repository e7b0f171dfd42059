"""One process of the bundled tritonserver: its command line, environment, model processes and log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.checks import MIB, TritonFiles
from runtime.keeper import session_members
from runtime.runs import Run

KEEPER = Path(__file__).resolve().parent / "keeper.py"
CLIENT = Path(__file__).resolve().parents[1] / "client"
STUB_NAME = "triton_python_backend_stub"
COMM_MAX = 15
"""Linux cuts the names of processes in /proc/PID/stat to this length."""

EXIT_TIMEOUT_S = 30
"""Grace period for requests in flight when the server stops; one picture may take as long."""
KILL_MARGIN_S = 5
"""Added to the grace period before Triton is killed."""
DRAINED_MARGIN_S = 0.3
"""Between the last request's end inside Triton and its process's end: the response is written meanwhile."""

SHM_START_BYTES = 4 * MIB
SHM_GROWTH_BYTES = 4 * MIB
"""Shared memory per model process at first, and in steps. Triton's own 1 MiB would grow at once; much more would not
fit into the 64 MiB of a container's /dev/shm when there are many processes."""

ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(64 * MIB),
    "MALLOC_TRIM_THRESHOLD_": str(128 * MIB),
}
"""How glibc serves memory to the model processes. By default it takes each large array from the system and gives it
back at once, and the system clears the pages anew each time: a fifth of a network's time. Up to these sizes memory is
kept for the next picture instead; what only a huge picture needs is given back. Few heaps, since each thread's own
would keep the largest picture that it saw."""

TRITON_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(MIB // 16),
    "MALLOC_TRIM_THRESHOLD_": str(MIB // 8),
}
"""The same for Triton's own process, which copies requests and answers and computes nothing: whatever is as large as a
picture's file, or as a piece of one that comes over the network, is given back at once. Kept in heaps, such pieces
would lie among small ones that stay, and the heaps would grow for thousands of requests. A picture of 12 megapixels
takes a few milliseconds longer for it."""

GRPC_ALLOCATION_POOL_SIZE = 0
"""Requests and answers that Triton's gRPC keeps for reuse in each of its threads. By default it is 8, each with room
for the largest picture that it ever held, which adds up over a thousand requests: to 190 MB, where it is 30 without."""

ORPHANS_S = 10.0
"""How long killed processes may take to be gone."""

CLOSED_APIS = ("model-repository", "shared-memory", "logging", "trace")
"""Endpoints that no caller needs and an attacker could abuse; each start restricts them with a random key."""

TRACES_DELAY_MS = 1000
"""How long Triton batches spans before it exports them, instead of its own 5 s."""


def trace_arguments(traces_url: str) -> list[str]:
    """Triton's arguments that export OpenTelemetry spans of requests with a trace context; none where the URL is empty.

    Args:
        traces_url: endpoint of OTLP over HTTP, such as "http://127.0.0.1:4318/v1/traces".
    """
    if not traces_url:
        return []
    settings = (
        "mode=opentelemetry",
        f"opentelemetry,url={traces_url}",
        f"opentelemetry,bsp_schedule_delay={TRACES_DELAY_MS}",
        "level=TIMESTAMPS",
        "rate=0",  # only requests that carry a trace context
    )
    return [f"--trace-config={setting}" for setting in settings]


@dataclass(frozen=True)
class Addresses:
    """Where a server listens."""

    host: str
    http: int
    grpc: int
    metrics: int

    @property
    def reachable(self) -> str:
        """A host by which this machine reaches the server."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not bound


@dataclass(frozen=True)
class Stub:
    """A model process: its id, when it was started (clock ticks since boot), and its model."""

    pid: int
    start_ticks: int
    model: str


class TritonProcess:
    """A tritonserver and its keeper, from start to end."""

    def __init__(
        self,
        files: TritonFiles,
        run: Run,
        addresses: Addresses,
        *,
        verbose: int = 0,
        exit_timeout_s: int = EXIT_TIMEOUT_S,
        traces_url: str = "",
    ) -> None:
        command = _command(files, run, addresses, verbose, exit_timeout_s, traces_url)
        spec = {
            "command": command,
            "owner": os.getpid(),
            "grace_s": exit_timeout_s + KILL_MARGIN_S,
            "shm_prefix": run.shm_prefix,
        }
        self._log = run.log
        self._local = addresses.host.startswith("127.")
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(files),
                # Ctrl-C in a terminal goes to the whole group: the supervisor alone is to hear it.
                start_new_session=True,
                pass_fds=(run.lock,),
            )
        assert self._keeper.stdout is not None
        self.pid = int(self._keeper.stdout.readline() or 0)

    def exit_status(self) -> int | None:
        """Triton's exit status, 128 + the signal that killed it, or None while it runs."""
        return self._keeper.poll()

    def stop(self, *, force: bool = False) -> int:
        """Stop Triton, wait until nothing of it is left, and return its exit status.

        Args:
            force: kill it instead; requests in flight are lost.
        """
        self._signal()
        if force:
            self._signal()
        elif self._local:
            self._wait_drained()
            self._signal()
        status = self._keeper.wait()
        if status < 0:
            self._end_orphans()
        for stream in (self._keeper.stdin, self._keeper.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return status

    def _end_orphans(self) -> None:
        """Kill what a killed keeper has left, since model processes do not always notice that Triton is gone. While one
        lives, the session id is not reused."""
        deadline = time.monotonic() + ORPHANS_S
        while (left := session_members(self._keeper.pid)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _wait_drained(self) -> None:
        """Wait until Triton has answered the requests in flight.

        All that follows is to unload its models one by one, a second each, for nothing. A client on this machine has
        its response by then; a remote one may still be reading, so there Triton exits by itself.
        """
        while self._keeper.poll() is None:
            if _DRAINED in self.log_text():
                time.sleep(DRAINED_MARGIN_S)
                return
            time.sleep(0.02)

    def force_stop(self) -> None:
        """Turn a `stop` that runs in another thread into a forced one."""
        self._signal()

    def _signal(self) -> None:
        if self._keeper.poll() is None:
            self._keeper.send_signal(signal.SIGTERM)
            # Two signals of a kind that arrive at once are one; apart they are two.
            time.sleep(0.02)

    def stubs(self) -> list[Stub]:
        """The model processes there are now."""
        return stubs_of(self.pid)

    def has_dead_stub(self) -> bool:
        """Whether a model process has ended; before its model is loaded, Triton itself waits for it for ever."""
        return any(
            stat.parent == self.pid and stat.state == "Z" and stat.name == STUB_NAME[:COMM_MAX] for stat in _all_stats()
        )

    def log_text(self) -> str:
        """What this process has logged so far."""
        try:
            with self._log.open("rb") as log:
                log.seek(self._log_start)
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def last_error(self) -> str:
        """See :func:`last_error`."""
        return last_error(self.log_text())


def stubs_of(triton: int) -> list[Stub]:
    """The model processes that the tritonserver with this process id has now."""
    found = []
    for stat in _all_stats():
        if stat.parent == triton and stat.state != "Z":
            with contextlib.suppress(OSError):
                words = Path("/proc", str(stat.pid), "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(words[0])).name == STUB_NAME and len(words) > 1:
                    found.append(Stub(stat.pid, stat.start_ticks, _model_of(os.fsdecode(words[1]))))
    return found


def is_gone(stub: Stub) -> bool:
    """Whether a model process has ended (its id may have gone to another process since)."""
    fields = _stat(stub.pid)
    return fields is None or fields.state in "ZX" or fields.start_ticks != stub.start_ticks


@dataclass(frozen=True)
class _Stat:
    pid: int
    name: str
    state: str
    parent: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        head, _, tail = Path("/proc", str(pid), "stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return _Stat(pid, head.partition("(")[2], fields[0], int(fields[1]), int(fields[19]))


def _all_stats() -> Iterator[_Stat]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            yield stat


def _model_of(model_py: str) -> str:
    """The model's name from the path of its model.py: …/<name>/<version>/model.py."""
    parts = Path(model_py).parts
    return parts[-3] if len(parts) >= 3 else "a model"


# "failed to load 'x' version 1: Internal: …" is the reason; lines after it only repeat that something failed.
_ERROR_PATTERNS = (
    re.compile(r"^E\d{4} .*?\] \"?(failed to load .*?)\"?$", re.MULTILINE),
    re.compile(r"^error: (.*)$", re.MULTILINE),
    re.compile(r"^E\d{4} .*?\] \"?(.*?)\"?$", re.MULTILINE),
    re.compile(r"^.*?(error while loading shared libraries: .*)$", re.MULTILINE),
)
# Triton's message when no request is in flight any more and it begins to unload.
_DRAINED = "All models are stopped, unloading models"

# Printed by every start on a machine without a GPU, and no reason for anything.
_HARMLESS = ("CudaDriverHelper has not been initialized",)


def last_error(log: str) -> str:
    """The line of a Triton log that most likely says why it ended, "" where there is none."""
    for pattern in _ERROR_PATTERNS:
        found = [text for text in pattern.findall(log) if not any(word in text for word in _HARMLESS)]
        if found:
            return str(found[-1]).strip()
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def _command(
    files: TritonFiles, run: Run, addresses: Addresses, verbose: int, exit_timeout_s: int, traces_url: str
) -> list[str]:
    restricted = f"{','.join(CLOSED_APIS)}:cutaway-closed={secrets.token_hex(16)}"
    return [
        str(files.server),
        f"--model-repository={run.repository}",
        f"--backend-directory={run.backends}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--http-address={addresses.host}",
        f"--http-port={addresses.http}",
        f"--grpc-address={addresses.host}",
        f"--grpc-port={addresses.grpc}",
        f"--grpc-infer-allocation-pool-size={GRPC_ALLOCATION_POOL_SIZE}",
        f"--metrics-address={addresses.host}",
        f"--metrics-port={addresses.metrics}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--backend-config=python,shm-region-prefix-name={run.shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHM_START_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH_BYTES}",
        "--backend-config=python,stub-timeout-seconds=120",
        f"--log-verbose={verbose}",
        *trace_arguments(traces_url),
    ]


def _environment(files: TritonFiles) -> dict[str, str]:
    """This process's environment, with what the bundled programs need to find."""
    environment = dict(os.environ)
    # The backend's stub embeds the Python that PATH finds first: this one, with its packages.
    _prepend(environment, "PATH", Path(sys.executable).parent)
    _prepend(environment, "LD_LIBRARY_PATH", files.libraries, files.libpython)
    _prepend(environment, "PYTHONPATH", CLIENT)
    environment.pop("PYTHONHOME", None)
    environment["PYTHONUNBUFFERED"] = "1"
    # numpy's thread pools would compete with the networks' for cores.
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Handed on to the models by model_process.sh.
    for name, value in ALLOCATOR.items():
        environment[f"CUTAWAY_MODEL_{name}"] = environment.get(name, value)
    for name, value in TRITON_ALLOCATOR.items():
        environment.setdefault(name, value)
    return environment


def _prepend(environment: dict[str, str], name: str, *folders: Path) -> None:
    there = [part for part in environment.get(name, "").split(os.pathsep) if part]
    environment[name] = os.pathsep.join([*map(str, folders), *there])
