"""Programs that a server consists of, each under a keeper of its own; and Triton's command line and environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.checks import MIB, TritonFiles
from runtime.keeper import session_members
from runtime.logs import LOG_MAX_BYTES, last_error, tail
from runtime.procfs import Stub, ending, has_dead_stub, stubs_of
from runtime.runs import Run

KEEPER = Path(__file__).resolve().parent / "keeper.py"
CLIENT = Path(__file__).resolve().parents[1] / "client"

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

CLOSED = ("shared-memory", "logging", "trace")
"""Endpoints that no caller needs and an attacker could abuse."""
MODEL_CONTROL = "model-repository"
"""Closed, too, where strangers reach Triton; on sockets it is how a single model is loaded anew."""
CLOSED_KEY = "\r\n\x7f=never"
"""The header that opens them. No HTTP or gRPC request can carry one of this name: there is nothing to keep secret."""

TRACES_DELAY_MS = 1000
"""How long Triton batches spans before it exports them, instead of its own 5 s."""


def endpoint_of_spans(environment: Mapping[str, str]) -> str:
    """What OpenTelemetry's own variables name for OTLP over HTTP; "" where they are not set."""
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    return environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (base and f"{base.rstrip('/')}/v1/traces")


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
    """Where a server listens for everybody."""

    host: str
    http: int
    grpc: int
    metrics: int

    private = False

    def clear(self) -> None:
        """Ports are free when their process has ended."""

    @property
    def reachable(self) -> str:
        """A host by which this machine reaches the server."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not bound

    @property
    def targets(self) -> tuple[str, str, str]:
        """HTTP, gRPC and metrics, as this machine reaches them."""
        return (
            f"{self.reachable}:{self.http}",
            f"{self.reachable}:{self.grpc}",
            f"{self.reachable}:{self.metrics}",
        )

    @property
    def arguments(self) -> list[str]:
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        return [
            argument
            for name, port in ports.items()
            for argument in (f"--{name}-address={self.host}", f"--{name}-port={port}")
        ]


@dataclass(frozen=True)
class Sockets:
    """Where a Triton listens that only this user reaches: Unix sockets in a folder of mode 0700."""

    folder: Path

    private = True

    def clear(self) -> None:
        """Remove what a killed Triton has left."""
        for target in self.targets:
            Path(target.removeprefix("unix:")).unlink(missing_ok=True)

    @property
    def targets(self) -> tuple[str, str, str]:
        """HTTP, gRPC and metrics. Triton appends the port to gRPC's path, and ignores the others."""
        return f"unix:{self.folder}/http", f"unix:{self.folder}/grpc:2", f"unix:{self.folder}/metrics"

    @property
    def arguments(self) -> list[str]:
        names = ("http", "grpc", "metrics")
        return [
            argument
            for port, name in enumerate(names, start=1)
            for argument in (f"--{name}-address=unix:{self.folder}/{name}", f"--{name}-port={port}")
        ]


class Kept:
    """A program under a keeper, from start to end.

    Args:
        command: the program and its arguments.
        environment: its variables.
        run: whose log it writes to, and whose lock is held while it lives.
        grace_s: between asking it to end and killing it.
        own_stdout: whether its standard output is :attr:`stdout`; it goes to the log where not, and the log is cut.
        shm_prefix: how its regions in shared memory are called, "" for none.
        descriptors: of open files that it has, too, by the same numbers.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        run: Run,
        *,
        grace_s: float,
        own_stdout: bool = False,
        shm_prefix: str = "",
        descriptors: Sequence[int] = (),
    ) -> None:
        spec = {
            "command": list(command),
            "owner": os.getpid(),
            "grace_s": grace_s,
            "shm_prefix": shm_prefix,
            "own_stdout": own_stdout,
            "log": str(run.log.absolute()),
            "log_max_bytes": 0 if own_stdout else LOG_MAX_BYTES,
        }
        self._log = run.log
        with open(self._log, "ab", opener=_private) as log:
            self._log_start = log.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                # Ctrl-C in a terminal goes to the whole group: the supervisor alone is to hear it.
                start_new_session=True,
                pass_fds=(run.lock, *descriptors),
            )
        assert self._keeper.stdout is not None
        self.stdout = self._keeper.stdout
        self.pid = int(self.stdout.readline() or 0)

    def exit_status(self) -> int | None:
        """The exit status, 128 + the signal that killed it, or None while it runs."""
        return self._keeper.poll()

    def wait_ended(self, timeout_s: float) -> None:
        """Wait for its end at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(timeout_s)

    def ask_to_end(self) -> None:
        """The first request lets work in flight be completed, the second kills."""
        if self._keeper.poll() is None:
            # One that somebody stopped hears no other signal.
            self._keeper.send_signal(signal.SIGCONT)
            self._keeper.send_signal(signal.SIGTERM)
            # Two signals of a kind that arrive at once are one; apart they are two.
            time.sleep(0.02)

    def stop(self, *, force: bool = False) -> int:
        """Stop it, wait until nothing of it is left, and return its exit status.

        Args:
            force: kill it instead; requests in flight are lost.
        """
        self.ask_to_end()
        if force:
            self.ask_to_end()
        return self._wait()

    def _wait(self) -> int:
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

    def log_text(self) -> str:
        """What was logged since its start, the last part where that is much."""
        return tail(self._log, self._log_start)

    def last_error(self) -> str:
        """See :func:`runtime.logs.last_error`."""
        return last_error(self.log_text())

    def end_reason(self) -> str:
        """How an ended program ended; a signal is the reason, whatever the log says."""
        status = self.exit_status() or 0
        if status < 0:
            return f"its keeper {ending(status)}"
        if status > 128:
            return ending(status)
        return f"status {status}: {self.last_error() or 'it said nothing'}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class TritonProcess(Kept):
    """A tritonserver."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], run: Run, *, grace_s: float, local: bool
    ) -> None:
        super().__init__(command, environment, run, grace_s=grace_s, shm_prefix=run.shm_prefix)
        self._local = local

    def stop(self, *, force: bool = False) -> int:
        self.ask_to_end()
        if force:
            self.ask_to_end()
        elif self._local:
            self._wait_drained()
            self.ask_to_end()
        return self._wait()

    def _wait_drained(self) -> None:
        """Wait until Triton has answered the requests in flight.

        All that follows is to unload its models one by one, a second each, for nothing. A client on this machine has
        its response by then; a remote one may still be reading, so there Triton exits by itself.
        """
        while self._keeper.poll() is None:
            if _DRAINED in tail(self._log, self._log_start, _DRAINED_TAIL_BYTES):
                time.sleep(DRAINED_MARGIN_S)
                return
            time.sleep(0.02)

    def stubs(self) -> list[Stub]:
        """The model processes there are now."""
        return stubs_of(self.pid)

    def has_dead_stub(self) -> bool:
        """See :func:`runtime.procfs.has_dead_stub`."""
        return has_dead_stub(self.pid)


# Triton's message when no request is in flight any more and it begins to unload.
_DRAINED = "All models are stopped, unloading models"
_DRAINED_TAIL_BYTES = 2**16


def triton_arguments(
    run: Run, listen: Addresses | Sockets, *, verbose: int, exit_timeout_s: int, traces_url: str
) -> list[str]:
    """The arguments that every Triton of the project is given, after the program."""
    apis = CLOSED if listen.private else (*CLOSED, MODEL_CONTROL)
    restricted = f"{','.join(apis)}:{CLOSED_KEY}"
    return [
        f"--model-repository={run.repository}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        f"--exit-timeout-secs={exit_timeout_s}",
        *listen.arguments,
        f"--grpc-infer-allocation-pool-size={GRPC_ALLOCATION_POOL_SIZE}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--backend-config=python,shm-region-prefix-name={run.shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={SHM_START_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH_BYTES}",
        "--backend-config=python,stub-timeout-seconds=120",
        f"--log-verbose={verbose}",
        *trace_arguments(traces_url),
    ]


def bundled_environment(files: TritonFiles) -> dict[str, str]:
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
