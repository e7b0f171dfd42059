"""What the GPU image runs: NVIDIA's tritonserver with the plans of a mounted profile, and the gate in front.

At each start the plans are held against this machine (`runtime.plans`), and the repository that Triton loads is
composed anew: from the image's, with links to the plans. All else (sockets, health checks, restarts) is as everywhere:
`runtime.server`.

Settings come from the environment; .env.example explains them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cutaway.contract.limits import PROFILES

from runtime.checks import RuntimeProblem
from runtime.compose import Composed, compose_plans
from runtime.gpus import Host, look_at_host
from runtime.launcher import Program, short
from runtime.plans import PLAN, check_plans
from runtime.process import ALLOCATOR, EXIT_TIMEOUT_S, endpoint_of_spans
from runtime.releases import release_here, release_warning
from runtime.runs import open_run
from runtime.schedule import SCHEDULES, Schedule, schedule_arguments
from runtime.server import Server, ServerOptions, serve_until_stopped
from runtime.weights import MADE

TRITONSERVER = Path("/opt/tritonserver/bin/tritonserver")
HTTP_PORT, GRPC_PORT, METRICS_PORT, SERVICE_PORT = 8000, 8001, 8002, 55433
"""Inside the container; docker-compose.yml says where they appear outside."""
PROFILE = "general"
INSTANCES_MAX = 30
"""With two processes of streams, as many as the networks' queues have places for."""


@dataclass(frozen=True)
class Settings:
    """How Triton is to run.

    Attributes:
        profile: the model pair to serve.
        instances: pictures served at once; as the repository says where None.
        network_instances: of each network on each GPU, likewise.
        gpus: which are used; all that the container has where empty.
        schedule: of the networks' runs, see `runtime.schedule`.
        exit_timeout_s: grace period of requests in flight when the container stops.
        verbose: Triton's own log level, 0 to 4.
        traces_url: where OTLP over HTTP takes spans; none where empty.
        direct: leaves the gate out.
        hosts, origins, gateway_options: see `ServerOptions`.
        address, http_port, grpc_port, metrics_port, service_port: where the server listens.
        tritonserver: the program.
        arguments: more of them.
        models: the profiles' folders, which may be read-only.
    """

    profile: str
    instances: int | None = None
    network_instances: int | None = None
    gpus: tuple[int, ...] = ()
    schedule: Schedule = "free"
    exit_timeout_s: int = EXIT_TIMEOUT_S
    verbose: int = 0
    traces_url: str = ""
    direct: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    gateway_options: tuple[str, ...] = ()
    address: str = "0.0.0.0"  # noqa: S104 - inside a container; the compose file publishes on loopback by default
    http_port: int = HTTP_PORT
    grpc_port: int = GRPC_PORT
    metrics_port: int = METRICS_PORT
    service_port: int = SERVICE_PORT
    tritonserver: Path = TRITONSERVER
    arguments: tuple[str, ...] = ()
    models: Path = MADE

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """The settings in an environment. An empty variable counts as none.

        Raises:
            RuntimeProblem: with one line that names the variable at fault.
        """
        profile = environment.get("CUTAWAY_PROFILE") or PROFILE
        if profile not in PROFILES:
            raise RuntimeProblem(f"CUTAWAY_PROFILE is to be one of {', '.join(PROFILES)}, and is {profile!r}")
        schedule = next((each for each in SCHEDULES if each == (environment.get("CUTAWAY_SCHEDULE") or "free")), None)
        if schedule is None:
            raise RuntimeProblem(f"CUTAWAY_SCHEDULE is to be one of {', '.join(SCHEDULES)}")
        gpus = environment.get("CUTAWAY_GPUS", "").split()
        if not all(each.isdecimal() for each in gpus):
            raise RuntimeProblem(f"CUTAWAY_GPUS is to be numbers with blanks between, and is {' '.join(gpus)!r}")
        return cls(
            profile=profile,
            instances=_whole(environment, "CUTAWAY_INSTANCES", 0, 1, INSTANCES_MAX) or None,
            network_instances=_whole(environment, "CUTAWAY_NETWORK_INSTANCES", 0, 1, 16) or None,
            gpus=tuple(map(int, gpus)),
            schedule=schedule,
            exit_timeout_s=_whole(environment, "CUTAWAY_EXIT_TIMEOUT_S", EXIT_TIMEOUT_S, 1, 3600),
            verbose=_whole(environment, "CUTAWAY_LOG_VERBOSE", 0, 0, 4),
            traces_url=environment.get("CUTAWAY_TRACES_URL") or endpoint_of_spans(environment),
            direct=bool(environment.get("CUTAWAY_DIRECT")),
            hosts=tuple(environment.get("CUTAWAY_HOSTS", "").split()),
            origins=tuple(environment.get("CUTAWAY_ORIGINS", "").split()),
            gateway_options=tuple(environment.get("CUTAWAY_GATEWAY_OPTIONS", "").split()),
        )


def _whole(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise RuntimeProblem(f"{name} is to be a whole number from {least} to {most}, and is {text!r}")
    return int(text)


def environment() -> dict[str, str]:
    """This process's environment with the defaults of the model processes; existing variables win."""
    wanted = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **ALLOCATOR}
    return {**wanted, **os.environ}


class PlanServer(Server):
    """A server of plans."""

    def __init__(self, settings: Settings, cache_dir: Path, say: Callable[[str], None]) -> None:
        super().__init__(
            ServerOptions(
                profile=settings.profile,
                address=settings.address,
                http_port=settings.http_port,
                grpc_port=settings.grpc_port,
                metrics_port=settings.metrics_port,
                cache_dir=cache_dir,
                direct=settings.direct,
                hosts=settings.hosts,
                origins=settings.origins,
                service_port=settings.service_port,
                gateway_options=settings.gateway_options,
                traces_url=settings.traces_url,
                access_log_fd=1,
            ),
            say,
        )
        self.settings = settings

    def _prepare(self) -> tuple[Program, Composed]:
        settings = self.settings
        assert self.options.cache_dir is not None
        run = self._run = open_run(self.options.cache_dir)
        composed = compose_repository(settings, look_at_host().of(settings.gpus), run.repository)
        self._say(
            f"serving {settings.profile}: mattes of {composed.matte_side_px} px, {composed.processes} model processes; "
            f"log in {short(run.log)}"
        )
        program = Program(
            settings.tritonserver,
            (*settings.arguments, *schedule_arguments(settings.schedule)),
            environment(),
            exit_timeout_s=settings.exit_timeout_s,
            verbose=settings.verbose,
            traces_url=settings.traces_url,
        )
        return program, composed


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
    return compose_plans(
        target,
        profile=settings.profile,
        plans=plans,
        device=host.device,
        instances=settings.instances,
        network_instances=settings.network_instances,
        gpus=settings.gpus,
        schedule=settings.schedule,
    )


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


def say(line: str) -> None:
    print(f"cutaway: {line}", file=sys.stderr, flush=True)


def main() -> int:
    """The container's exit status: 0 only after a requested stop."""
    try:
        settings = Settings.read(os.environ)
        serve_until_stopped(PlanServer(settings, Path(tempfile.gettempdir()) / "cutaway", say), say)
    except RuntimeProblem as problem:
        say(f"error: {problem}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
