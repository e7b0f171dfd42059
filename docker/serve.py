"""What the GPU image runs: NVIDIA's tritonserver with the plans of a mounted profile, watched by a small picture.

At each start the plans are held against this machine (`runtime.plans`), and the repository that Triton loads is
composed anew: from the image's, with links to the plans.

Triton of this release reports ready although a model's process is dead, and Docker does not restart what is only
unhealthy. So this process watches the models' processes, sends the small picture itself, and ends when one is gone or
nothing comes back: the restart policy of docker-compose.yml then starts the container anew.

Settings come from the environment; .env.example explains them.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cutaway.contract.limits import PROFILES

from runtime.checks import RuntimeProblem, shm_shortage
from runtime.compose import Composed, compose_plans
from runtime.gpus import Host, look_at_host
from runtime.health import CANARY_INTERVAL_S, HealthMonitor, Probe
from runtime.plans import PLAN, check_plans
from runtime.process import (
    ALLOCATOR,
    CLOSED_APIS,
    EXIT_TIMEOUT_S,
    GRPC_ALLOCATION_POOL_SIZE,
    KILL_MARGIN_S,
    SHM_GROWTH_BYTES,
    SHM_START_BYTES,
    Stub,
    is_gone,
    stubs_of,
    trace_arguments,
)
from runtime.releases import release_here, release_warning
from runtime.weights import MADE

TRITONSERVER = Path("/opt/tritonserver/bin/tritonserver")
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8000, 8001, 8002
"""Inside the container; docker-compose.yml says where they appear outside."""

CLOSED = (*CLOSED_APIS, "model-config")
"""The endpoints that need the key. Statistics stay open: they hold no more than the metrics."""
KEY_HEADER = "cutaway-admin"
"""The HTTP header that carries the key; over gRPC it is `triton-grpc-protocol-cutaway-admin`."""
KEY_FORM = re.compile(r"[A-Za-z0-9._-]{16,}")

POLL_INTERVAL_S = 0.5
PROFILE = "general"


@dataclass(frozen=True)
class Settings:
    """How Triton is to run.

    Attributes:
        profile: the model pair to serve.
        key: opens the closed endpoints; random where none was given.
        exit_timeout_s: grace period of requests in flight when the container stops.
        verbose: Triton's own log level, 0 to 4.
        traces_url: where OTLP over HTTP takes spans; none where empty.
        address, http_port, grpc_port, metrics_port: where Triton listens.
        tritonserver: the program.
        models: the profiles' folders, which may be read-only.
    """

    profile: str
    key: str
    exit_timeout_s: int = EXIT_TIMEOUT_S
    verbose: int = 0
    traces_url: str = ""
    address: str = "0.0.0.0"  # noqa: S104 - inside a container; the compose file publishes on loopback by default
    http_port: int = HTTP_PORT
    grpc_port: int = GRPC_PORT
    metrics_port: int = METRICS_PORT
    tritonserver: Path = TRITONSERVER
    models: Path = MADE

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """The settings in an environment. An empty variable counts as none.

        Raises:
            RuntimeProblem: with one line that names the variable at fault.
        """
        key = environment.get("CUTAWAY_ADMIN_KEY") or secrets.token_hex(16)
        if not KEY_FORM.fullmatch(key):
            raise RuntimeProblem("CUTAWAY_ADMIN_KEY needs at least 16 letters, digits, dots, dashes or underscores")
        profile = environment.get("CUTAWAY_PROFILE") or PROFILE
        if profile not in PROFILES:
            raise RuntimeProblem(f"CUTAWAY_PROFILE is to be one of {', '.join(PROFILES)}, and is {profile!r}")
        return cls(
            profile=profile,
            key=key,
            exit_timeout_s=_whole(environment, "CUTAWAY_EXIT_TIMEOUT_S", EXIT_TIMEOUT_S, 1, 3600),
            verbose=_whole(environment, "CUTAWAY_LOG_VERBOSE", 0, 0, 4),
            traces_url=environment.get("CUTAWAY_TRACES_URL", ""),
        )


def _whole(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise RuntimeProblem(f"{name} is to be a whole number from {least} to {most}, and is {text!r}")
    return int(text)


def command(settings: Settings, repository: Path) -> list[str]:
    """Triton's command line, for a model repository."""
    closed = f"{','.join(CLOSED)}:{KEY_HEADER}={settings.key}"
    return [
        str(settings.tritonserver),
        f"--model-repository={repository}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        f"--exit-timeout-secs={settings.exit_timeout_s}",
        f"--http-address={settings.address}",
        f"--http-port={settings.http_port}",
        f"--grpc-address={settings.address}",
        f"--grpc-port={settings.grpc_port}",
        f"--grpc-infer-allocation-pool-size={GRPC_ALLOCATION_POOL_SIZE}",
        f"--metrics-address={settings.address}",
        f"--metrics-port={settings.metrics_port}",
        f"--http-restricted-api={closed}",
        f"--grpc-restricted-protocol={closed}",
        f"--backend-config=python,shm-default-byte-size={SHM_START_BYTES}",
        f"--backend-config=python,shm-growth-byte-size={SHM_GROWTH_BYTES}",
        "--backend-config=python,stub-timeout-seconds=120",
        f"--log-verbose={settings.verbose}",
        *trace_arguments(settings.traces_url),
    ]


def environment() -> dict[str, str]:
    """This process's environment with the defaults of the model processes; existing variables win."""
    wanted = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **ALLOCATOR}
    return {**wanted, **os.environ}


def compose_repository(settings: Settings, host: Host, target: Path) -> Composed:
    """Write the repository of the profile's plans into the empty folder `target`.

    Raises:
        RuntimeProblem: a plan is missing or does not fit this machine; the line says which and what helps.
    """
    folder = settings.models / settings.profile
    _check_readable(folder)
    try:
        plans = check_plans(folder, host)
    except RuntimeProblem as problem:
        if host.problem is not None and host.problem in str(problem):
            raise
        raise RuntimeProblem(f"{problem}; in containers: docker compose run --rm export {settings.profile}") from None
    for warning in (line for plan in plans.values() for line in plan.warnings):
        say(f"warning: {warning}")
    if (outdated := release_warning(release_here())) is not None:
        say(f"warning: {outdated}")
    return compose_plans(target, profile=settings.profile, plans=plans, device=host.device)


def _check_readable(folder: Path) -> None:
    """Whether this user may read a profile's plans, if there are any."""
    try:
        for path in folder.iterdir():
            if PLAN in path.suffixes:
                with path.open("rb"):
                    pass
    except PermissionError as error:
        raise RuntimeProblem(
            f"{error.filename} cannot be read by user {os.geteuid()}:{os.getegid()}: {error.strerror}; set CUTAWAY_UID "
            "and CUTAWAY_GID to the owner of the profiles' folders"
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        return


def supervise(
    triton: subprocess.Popen[bytes],
    probe: Probe,
    stopping: threading.Event,
    *,
    grace_period_s: float,
    canary_interval_s: float = CANARY_INTERVAL_S,
) -> int:
    """Supervise Triton until it exits, and return the container's exit status: 0 only after a requested stop.

    Args:
        triton: the running server; the code that sets `stopping` has sent it SIGTERM.
        probe: sends it health checks.
        stopping: set when the container is to stop.
        grace_period_s: how long the server may take to end then.
        canary_interval_s: how often an idle server is sent the small picture.
    """
    watch: HealthMonitor | None = None
    stubs: list[Stub] = []
    try:
        while not stopping.wait(POLL_INTERVAL_S):
            if triton.poll() is not None:
                status = _exit_status(triton)
                say(f"Triton ended by itself with status {status}; its last lines say why")
                return status or 1
            if watch is None:
                if probe.ready():
                    stubs = stubs_of(triton.pid)
                    say("the models are loaded")
                    watch = HealthMonitor(probe, interval_s=canary_interval_s)
                continue
            gone = next((stub for stub in stubs if is_gone(stub)), None)
            failure = f"the process of {gone.model} ({gone.pid}) is gone" if gone else watch.check()
            if failure is not None:
                say(f"the server is unhealthy ({failure}); exiting, so that the container is restarted")
                return 1
        say("stopping: requests in flight are completed")
        try:
            triton.wait(grace_period_s)
        except subprocess.TimeoutExpired:
            say(f"Triton did not end within {grace_period_s:g} s and is killed")
        return 0
    finally:
        if watch is not None:
            watch.close()
        if triton.poll() is None:
            triton.kill()
            triton.wait()


def _exit_status(triton: subprocess.Popen[bytes]) -> int:
    return triton.returncode if triton.returncode >= 0 else 128 - triton.returncode


def say(line: str) -> None:
    print(f"cutaway: {line}", file=sys.stderr, flush=True)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="cutaway-repository-") as folder:
        try:
            settings = Settings.read(os.environ)
            composed = compose_repository(settings, look_at_host(), Path(folder))
        except RuntimeProblem as problem:
            say(f"error: {problem}")
            return 1
        say(f"serving {settings.profile}: mattes of {composed.matte_side_px} px, {composed.processes} model processes")
        return run(settings, composed)


def run(settings: Settings, composed: Composed) -> int:
    """Run Triton on the repository until it exits or a stop is requested; the container's exit status."""
    shortage = shm_shortage(composed.processes, side_px=composed.matte_side_px)
    if shortage is not None:
        say(f"warning: {shortage}; CUTAWAY_SHM_SIZE sets it")
    stopping = threading.Event()
    triton = subprocess.Popen(command(settings, composed.folder), env=environment())

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()
        if triton.poll() is None:
            triton.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    probe = Probe("127.0.0.1", settings.http_port)
    return supervise(triton, probe, stopping, grace_period_s=settings.exit_timeout_s + KILL_MARGIN_S)


if __name__ == "__main__":
    sys.exit(main())
