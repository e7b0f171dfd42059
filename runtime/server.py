"""One supervised server: Triton on sockets of its own, the gate in front, started, watched, stopped without a trace.

with Server(ServerOptions(profile="nano")) as server:
    client = cutaway.Client(server.grpc_url)
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from cutaway.contract.limits import PROCESSING_TIMEOUT_S

from runtime.checks import RuntimeProblem, check_machine, check_port, free_ports, resolve, shm_shortage
from runtime.compose import CHECKOUT, SOURCE, Composed, compose
from runtime.devices import DeviceChoice, choose_device, cores, plan
from runtime.gate import Gate
from runtime.health import CANARY_INTERVAL_S, CANARY_TIMEOUT_S, Probe
from runtime.launcher import Launcher, Program, StartCancelled, short
from runtime.metrics import Metrics
from runtime.process import KILL_MARGIN_S, Addresses, Sockets, TritonProcess, bundled_environment
from runtime.runs import Run, default_cache_dir, open_run
from runtime.schedule import Schedule, schedule_arguments
from runtime.supervision import Supervisor
from runtime.weights import load_networks, precision_of, profile_folder

PORT_TRIES = 5
WEIGHTS_VARIABLE = "CUTAWAY_WEIGHTS"
DIRECT_WARNING = (
    "direct: there is no gate, so that whoever reaches the ports can end Triton with a malformed request, or fill its "
    "memory, and a model process that dies restarts all of it"
)

__all__ = ["Server", "ServerOptions", "StartCancelled"]


@dataclass(frozen=True)
class ServerOptions:
    """Configuration of a server.

    Attributes:
        profile: the model pair; its files lie in `models/<profile>` where they were made, else in
            `export/weights/<profile>`, unless `weights` says otherwise.
        weights: a folder with the networks and SHA256SUMS; where None, $CUTAWAY_WEIGHTS, then the profile's folder.
        address: the IPv4 address or name to listen on; "0.0.0.0" lets other machines reach it.
        http_port, grpc_port, metrics_port: 0 takes any free one.
        instances: pictures served at once; as many as fit the cores where None.
        threads: threads of one network's run; all cores where None.
        queue_size: pictures that may wait; where None, a few per instance on a CPU, on a GPU `model_repository/`'s.
        processing_timeout_s: deadline of one picture; 30 s where None. A large network on a CPU needs more.
        device: "auto" takes CUDA where it works, "cuda" insists on it.
        schedule: "free", or "limited": at most two runs of detectors and one of matting networks at a time.
        cache_dir: where repositories and logs are written; `.cache/runtime` of the checkout where None.
        verbose: Triton's own log level, 0 to 4.
        start_timeout_s: how long loading may take.
        hosts, origins: further names of this server in Host headers, and pages that may call (`gateway/settings.py`).
        direct: leaves the gate out, so that callers reach Triton itself; only where all of them are trusted.
        service_port: port of the HTTP service and its page; 0 takes any free one, -1 leaves it out, as `direct` does.
        gateway_options: further options of `python -m gateway`.
        canary_interval_s: interval of health checks.
        source: the repository to serve.
        traces_url: where OTLP over HTTP takes spans, such as "http://127.0.0.1:4318/v1/traces"; none where empty.
        access_log_fd: descriptor of the open file that a line for each request goes to; `log` where None.
    """

    profile: str = "nano"
    weights: Path | None = None
    address: str = "127.0.0.1"
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    instances: int | None = None
    threads: int | None = None
    queue_size: int | None = None
    processing_timeout_s: float | None = None
    device: DeviceChoice = "auto"
    schedule: Schedule = "free"
    cache_dir: Path | None = None
    verbose: int = 0
    start_timeout_s: float = 300.0
    canary_interval_s: float = CANARY_INTERVAL_S
    source: Path = SOURCE
    traces_url: str = ""
    access_log_fd: int | None = None
    direct: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    service_port: int = -1
    gateway_options: tuple[str, ...] = ()

    @property
    def weights_dir(self) -> Path:
        """The folder of the networks' files."""
        if self.weights is not None:
            return self.weights
        named = os.environ.get(WEIGHTS_VARIABLE)
        return Path(named) if named else profile_folder(self.profile)


class Server:
    """A running server; use as a context manager, or `start` and `stop` it.

    Args:
        options: its configuration.
        say: callback for each line for the user; silent where None.
    """

    launcher_type = Launcher

    def __init__(self, options: ServerOptions | None = None, say: Callable[[str], None] | None = None) -> None:
        self.options = options or ServerOptions()
        self._say = say or (lambda _line: None)
        self._stopping = threading.Event()
        self._run: Run | None = None
        self._launcher: Launcher | None = None
        self._gate: Gate | None = None
        self._supervisor: Supervisor | None = None
        self._addresses = Addresses(self.options.address, 0, 0, 0)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def restarts(self) -> int:
        """How often Triton was started anew."""
        return 0 if self._supervisor is None else self._supervisor.restarts

    @property
    def reloads(self) -> int:
        """How often a single model was loaded anew."""
        return 0 if self._supervisor is None else self._supervisor.reloads

    @property
    def failure(self) -> RuntimeProblem | None:
        """Why the server failed for good; None until then."""
        return None if self._supervisor is None else self._supervisor.failure

    @property
    def http_url(self) -> str:
        return f"http://{self.http_address}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self.grpc_address}"

    @property
    def service_url(self) -> str:
        """The HTTP service and its page; "" where there is none."""
        port = -1 if self._gate is None else self._gate.service_port
        return "" if port < 0 else f"http://{self._listening.reachable}:{port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._listening.reachable}:{self._listening.metrics}/metrics"

    @property
    def http_address(self) -> str:
        """host:port, as tritonclient wants it."""
        return self._listening.targets[0]

    @property
    def grpc_address(self) -> str:
        """host:port, as tritonclient wants it."""
        return self._listening.targets[1]

    @property
    def triton_grpc_address(self) -> str:
        """Triton's own gRPC, past the gate; it knows the networks, too."""
        assert self._launcher is not None, "the server was not started"
        return self._launcher.listen.targets[1]

    @property
    def log(self) -> Path:
        """The file that Triton, the models and the gate write to. It is kept when the server has ended."""
        assert self._run is not None, "the server was not started"
        return self._run.log

    @property
    def process(self) -> TritonProcess:
        """The Triton that runs at this moment."""
        assert self._launcher is not None, "the server was not started"
        return self._launcher.process

    @property
    def gate(self) -> Gate | None:
        """The gate in front; None where there is none."""
        return self._gate

    @property
    def probe(self) -> Probe:
        """Sends health checks straight to this server's Triton."""
        return Probe("unix:/") if self._launcher is None else self._launcher.probe

    def start(self) -> None:
        """Start, and return when a canary has gone through `ensemble_pipeline`.

        Raises:
            RuntimeProblem: the server cannot start; one line that says why.
            StartCancelled: a stop was requested meanwhile.
        """
        begun = time.monotonic()
        self._addresses = self._wanted_addresses()
        options = self.options
        try:
            program, composed = self._prepare()
            assert self._run is not None
            for warning in (
                shm_shortage(composed.processes, side_px=composed.matte_side_px),
                DIRECT_WARNING if options.direct else None,
            ):
                if warning is not None:
                    self._say(f"warning: {warning}")
            self._launch(program, composed, self._run)
            assert self._launcher is not None
            if not options.direct:
                self._gate = Gate(
                    self._launcher.listen,
                    self._addresses,
                    self._run,
                    request_s=3 * self._timeout_s,  # in the queue, in the pipeline, and some
                    drain_s=program.exit_timeout_s + KILL_MARGIN_S,
                    hosts=options.hosts,
                    origins=options.origins,
                    service_port=options.service_port,
                    traces_url=options.traces_url,
                    access_log_fd=options.access_log_fd,
                    more=options.gateway_options,
                )
                self._gate.launch()
        except BaseException:
            self.stop()
            raise
        self._say(f"ready in {time.monotonic() - begun:.1f} s: {self._where}")
        self._supervisor = Supervisor(
            self._launcher,
            self._gate,
            Metrics(self._run.metrics, composed.instances),  # the gate adds them to its own
            canary_interval_s=options.canary_interval_s,
            canary_timeout_s=max(CANARY_TIMEOUT_S, self._timeout_s + 5),
            stopping=self._stopping,
            say=self._say,
        )
        self._supervisor.start()

    def request_stop(self) -> None:
        """Request a stop, for instance from a signal handler; `wait` then returns. A second request forces it."""
        if self._stopping.is_set():
            if self._gate is not None:
                self._gate.force_stop()
            if self._launcher is not None:
                self._launcher.force_stop()
        self._stopping.set()

    def wait(self) -> None:
        """Wait until a stop is requested or the server fails for good (see `failure`)."""
        while not (self._stopping.wait(0.2) or self.failure is not None):
            pass

    def stop(self) -> None:
        """Stop: requests in flight complete, then no process and no shared memory is left."""
        self.stop_supervision()
        if self._gate is not None:
            self._gate.stop()
        if self._launcher is not None:
            self._launcher.stop()
        if self._run is not None:
            self._run.close()

    def stop_supervision(self) -> None:
        """Nothing is restarted any more; what runs goes on until `stop`."""
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.join()

    @property
    def _listening(self) -> Addresses:
        return self._addresses if self._gate is None else self._gate.addresses

    @property
    def _timeout_s(self) -> float:
        given_s = self.options.processing_timeout_s
        return PROCESSING_TIMEOUT_S if given_s is None else given_s

    @property
    def _where(self) -> str:
        ports = f"{self.http_url} and {self.grpc_url}, metrics {self.metrics_url}"
        return f"{self.service_url} in a browser; KServe: {ports}" if self.service_url else ports

    def _wanted_addresses(self) -> Addresses:
        options = self.options
        host = resolve(options.address)
        for port, use, option in (
            (options.http_port, "HTTP", "--http-port"),
            (options.grpc_port, "gRPC", "--grpc-port"),
            (options.metrics_port, "metrics", "--metrics-port"),
            (0 if options.direct else options.service_port, "the HTTP service", "--service-port"),
        ):
            if port > 0:
                check_port(host, port, use, option)
        return Addresses(host, options.http_port, options.grpc_port, options.metrics_port)

    def _prepare(self) -> tuple[Program, Composed]:
        """Open the run's folder, and write the repository into it."""
        options = self.options
        files = check_machine()
        networks = load_networks(options.weights_dir)
        device = choose_device(options.device, networks["yolov8_seg"].path)
        networks = load_networks(options.weights_dir, int8=device.int8)
        layout = plan(cores(), options.instances, options.threads)
        run = self._run = open_run(options.cache_dir or default_cache_dir(CHECKOUT))
        run.link_backend(files)
        composed = compose(
            run.repository,
            profile=options.profile,
            networks=networks,
            device=device,
            plan=layout,
            queue_size=options.queue_size,
            processing_timeout_s=options.processing_timeout_s,
            schedule=options.schedule,
            source=options.source,
        )
        where = (
            device.name
            if device.kind == "cuda"
            else f"CPU, {precision_of(networks)}, {layout.threads} threads per network"
        )
        self._say(
            f"starting Triton with profile {options.profile} on {where}; "
            f"{layout.instances} pictures at once; log in {short(run.log)}"
        )
        if device.warning is not None:
            self._say(f"warning: {device.warning}")
        environment = bundled_environment(files)
        arguments = (f"--backend-directory={run.backends}", *schedule_arguments(options.schedule))
        program = Program(files.server, arguments, environment, verbose=options.verbose, traces_url=options.traces_url)
        return program, composed

    def _launch(self, program: Program, composed: Composed, run: Run) -> None:
        """Start Triton and wait for its first canary."""
        for attempt in range(1, PORT_TRIES + 1):
            self._launcher = self.launcher_type(
                program,
                run,
                composed,
                self._free(self._addresses) if self.options.direct else Sockets(run.sockets),
                processing_timeout_s=self._timeout_s,
                start_timeout_s=self.options.start_timeout_s,
                stopping=self._stopping,
                say=self._say,
            )
            try:
                self._launcher.launch()
            except RuntimeProblem as problem:
                # Another process may take a free port before Triton binds it.
                free = 0 in (self._addresses.http, self._addresses.grpc, self._addresses.metrics)
                if "already in use" in str(problem) and self.options.direct and free and attempt < PORT_TRIES:
                    continue
                raise
            if isinstance(self._launcher.listen, Addresses):
                self._addresses = self._launcher.listen
            return

    def _free(self, wanted: Addresses) -> Addresses:
        free = iter(free_ports(wanted.host, 3))
        return Addresses(wanted.host, *(port or next(free) for port in (wanted.http, wanted.grpc, wanted.metrics)))


def serve_until_stopped(server: Server, say: Callable[[str], None]) -> None:
    """Run a server until SIGINT, SIGTERM or SIGHUP; a second one ends it at once.

    Raises:
        RuntimeProblem: it does not start, or failed for good.
    """
    asked: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        server.request_stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        server.start()
        server.wait()
        if asked:
            say("stopping: requests in flight are completed (once more to stop at once)")
    except StartCancelled:
        pass
    finally:
        server.stop()
    if server.failure is not None:
        raise server.failure
    say("stopped")
