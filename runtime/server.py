"""One supervised Triton: composed, started, health-checked, restarted after a failure, and stopped without a trace.

with Server(ServerOptions(profile="nano")) as server:
    client = cutaway.Client(server.grpc_url)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cutaway.contract.limits import PROCESSING_TIMEOUT_S

from runtime.checks import RuntimeProblem, TritonFiles, check_machine, check_port, free_ports, resolve, shm_shortage
from runtime.compose import CHECKOUT, SOURCE, Composed, compose
from runtime.devices import Device, DeviceChoice, Plan, choose_device, cores, plan
from runtime.health import CANARY_INTERVAL_S, STALL_TIMEOUT_S, HealthMonitor, HealthStatus, Probe
from runtime.process import Addresses, Stub, TritonProcess, is_gone
from runtime.runs import Run, default_cache_dir, open_run
from runtime.weights import load_networks, precision_of, profile_folder

POLL_INTERVAL_S = 0.25
"""Poll interval of the process check: a dead process is noticed within this time."""
START_POLL_S = 0.05
START_PROGRESS_INTERVAL_S = 10.0
"""Interval of the progress lines of a slow start."""
FIRST_PICTURE_TIMEOUT_S = 120.0
"""For detection and for matting each; at least four times the processing timeout."""
MAX_RESTARTS = 5
RESTART_WINDOW_S = 600.0
"""After more than `MAX_RESTARTS` restarts within this time the server fails for good."""
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0)
"""Backoff before the first, second, … restart within the window."""
PORT_TRIES = 5

WEIGHTS_VARIABLE = "CUTAWAY_WEIGHTS"


@dataclass(frozen=True)
class ServerOptions:
    """Configuration of a server.

    Attributes:
        profile: the model pair; its files lie in `models/<profile>` where they were made, else in
            `export/weights/<profile>`, unless `weights` says otherwise.
        weights: a folder with `yolov8_seg.onnx`, `birefnet_trt.onnx` and SHA256SUMS; where None, the environment
            variable CUTAWAY_WEIGHTS, then the profile's folder.
        address: the IPv4 address or name to listen on; "0.0.0.0" lets other machines reach it.
        http_port, grpc_port, metrics_port: 0 takes any free one.
        instances: pictures served at once; as many as fit the cores where None.
        threads: threads of one network's run; all cores where None.
        queue_size: pictures that may wait; where None, a few for each instance on a CPU, on a GPU as
            `model_repository/` says.
        processing_timeout_s: deadline of one picture; 30 s where None. A large network on a CPU needs more.
        device: "auto" takes CUDA where it works, "cuda" insists on it.
        cache_dir: where repositories and logs are written; `.cache/runtime` of the checkout where None.
        verbose: Triton's own log level, 0 to 4.
        start_timeout_s: how long loading may take.
        canary_interval_s: interval of canary requests to an idle server.
        source: the repository to serve.
        traces_url: where OTLP over HTTP takes the spans of requests that carry a trace's context, such as
            "http://127.0.0.1:4318/v1/traces"; no spans where empty.
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
    cache_dir: Path | None = None
    verbose: int = 0
    start_timeout_s: float = 300.0
    canary_interval_s: float = CANARY_INTERVAL_S
    source: Path = SOURCE
    traces_url: str = ""

    @property
    def weights_dir(self) -> Path:
        """The folder of the networks' files."""
        if self.weights is not None:
            return self.weights
        named = os.environ.get(WEIGHTS_VARIABLE)
        return Path(named) if named else profile_folder(self.profile)


class StartCancelled(Exception):
    """A stop was requested during the start."""


class Server:
    """A running server; use as a context manager, or `start` and `stop` it.

    Args:
        options: its configuration.
        say: callback for each line for the user; silent where None.

    Attributes:
        restarts: number of restarts so far.
        failure: why the server failed for good; None until then.
    """

    def __init__(self, options: ServerOptions | None = None, say: Callable[[str], None] | None = None) -> None:
        self.options = options or ServerOptions()
        self.restarts = 0
        self.failure: RuntimeProblem | None = None
        self._say = say or (lambda _line: None)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._run: Run | None = None
        self._process: TritonProcess | None = None
        self._watcher: threading.Thread | None = None
        self._files: TritonFiles | None = None
        self._stubs: list[Stub] = []
        self._processes = 0
        self._addresses = Addresses(self.options.address, 0, 0, 0)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        return f"http://{self.http_address}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self.grpc_address}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._addresses.reachable}:{self._addresses.metrics}/metrics"

    @property
    def http_address(self) -> str:
        """host:port, as tritonclient wants it."""
        return f"{self._addresses.reachable}:{self._addresses.http}"

    @property
    def grpc_address(self) -> str:
        """host:port, as tritonclient wants it."""
        return f"{self._addresses.reachable}:{self._addresses.grpc}"

    @property
    def log(self) -> Path:
        """The file that Triton and the models write to. It is kept when the server has ended."""
        assert self._run is not None, "the server was not started"
        return self._run.log

    @property
    def process(self) -> TritonProcess:
        """The Triton that runs at this moment."""
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def probe(self) -> Probe:
        """Sends health checks to this server."""
        return Probe(self._addresses.reachable, self._addresses.http)

    def start(self) -> None:
        """Start, and return when a canary has gone through `ensemble_pipeline`.

        Raises:
            RuntimeProblem: the server cannot start; one line that says why.
            StartCancelled: a stop was requested meanwhile.
        """
        begun = time.monotonic()
        options = self.options
        self._files = check_machine()
        self._addresses = self._choose_addresses()
        networks = load_networks(options.weights_dir)
        device = choose_device(options.device, networks["yolov8_seg"].path)
        networks = load_networks(options.weights_dir, int8=device.int8)
        layout = plan(cores(), options.instances, options.threads)
        self._run = open_run(options.cache_dir or default_cache_dir(CHECKOUT))
        try:
            self._run.link_backend(self._files)
            composed = compose(
                self._run.repository,
                profile=options.profile,
                networks=networks,
                device=device,
                plan=layout,
                queue_size=options.queue_size,
                processing_timeout_s=options.processing_timeout_s,
                source=options.source,
            )
            self._processes = composed.processes
            self._announce(composed, device, layout, precision_of(networks))
            self._launch()
        except BaseException:
            self.stop()
            raise
        self._say(f"ready in {time.monotonic() - begun:.1f} s: {self._where}")
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()

    def request_stop(self) -> None:
        """Request a stop, for instance from a signal handler; `wait` then returns. A second request forces it."""
        if self._stopping.is_set() and self._process is not None:
            self._process.force_stop()
        self._stopping.set()

    def wait(self) -> None:
        """Wait until a stop is requested or the server fails for good (see `failure`)."""
        while not (self._stopping.wait(0.2) or self._ended.is_set()):
            pass

    def stop(self) -> None:
        """Stop: requests in flight complete, then no process and no shared memory is left."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        if self._process is not None:
            self._process.stop()
        if self._run is not None:
            self._run.close()

    @property
    def _timeout_s(self) -> float:
        given_s = self.options.processing_timeout_s
        return PROCESSING_TIMEOUT_S if given_s is None else given_s

    @property
    def _where(self) -> str:
        return f"{self.http_url} and {self.grpc_url}, metrics {self.metrics_url}"

    def _choose_addresses(self) -> Addresses:
        options = self.options
        wanted = (
            (options.http_port, "HTTP", "--http-port"),
            (options.grpc_port, "gRPC", "--grpc-port"),
            (options.metrics_port, "metrics", "--metrics-port"),
        )
        host = resolve(options.address)
        for port, use, option in wanted:
            if port:
                check_port(host, port, use, option)
        free = iter(free_ports(host, len(wanted)))
        return Addresses(host, *(port or next(free) for port, _, _ in wanted))

    def _announce(self, composed: Composed, device: Device, layout: Plan, precision: str) -> None:
        where = device.name if device.kind == "cuda" else f"CPU, {precision}, {layout.threads} threads per network"
        self._say(
            f"starting Triton with profile {self.options.profile} on {where}; "
            f"{layout.instances} pictures at once; log in {_short(self.log)}"
        )
        for warning in (device.warning, shm_shortage(composed.processes, side_px=composed.matte_side_px)):
            if warning is not None:
                self._say(f"warning: {warning}")

    def _launch(self) -> None:
        """Start Triton and wait for its first canary."""
        assert self._files is not None and self._run is not None
        for _ in range(PORT_TRIES):
            self._process = TritonProcess(
                self._files,
                self._run,
                self._addresses,
                verbose=self.options.verbose,
                traces_url=self.options.traces_url,
            )
            try:
                self._wait_ready(self._process)
            except RuntimeProblem as problem:
                self._process.stop(force=True)
                # Another process may take a free port before Triton binds it.
                if "already in use" in str(problem) and 0 in (self.options.http_port, self.options.grpc_port):
                    self._addresses = self._choose_addresses()
                    continue
                raise
            return
        raise RuntimeProblem("no free ports could be kept; name some: --http-port, --grpc-port, --metrics-port")

    def _wait_ready(self, process: TritonProcess) -> None:
        begun = time.monotonic()
        progress_at = begun + START_PROGRESS_INTERVAL_S
        probe = self.probe
        while not probe.ready():
            now = time.monotonic()
            if self._stopping.is_set():
                raise StartCancelled
            if process.exit_status() is not None:
                raise RuntimeProblem(self._start_failure(process))
            if now - begun > self.options.start_timeout_s:
                raise RuntimeProblem(
                    f"Triton did not load the models within {self.options.start_timeout_s:g} s; see {_short(self.log)}"
                )
            if now > progress_at:
                if process.has_dead_stub():
                    raise RuntimeProblem(
                        f"a model's process ended while starting: {process.last_error()}; see {_short(self.log)}"
                    )
                self._say(f"still loading the models ({now - begun:.0f} s)")
                progress_at = now + START_PROGRESS_INTERVAL_S
            self._stopping.wait(START_POLL_S)
        self._stubs = process.stubs()
        if len(self._stubs) < self._processes:
            raise RuntimeProblem(f"a model's process ended while starting; see {_short(self.log)}")
        loaded = time.monotonic()
        answer = probe.canary(max(FIRST_PICTURE_TIMEOUT_S, 4 * self._timeout_s))
        if answer.status not in (HealthStatus.HEALTHY, HealthStatus.OVERLOADED):
            raise RuntimeProblem(f"the first picture failed: {answer.message}; see {_short(self.log)}")
        if (took_s := time.monotonic() - loaded) > self._timeout_s / 2:
            self._say(
                f"warning: a small picture took {took_s:.0f} s, the timeout is {self._timeout_s:g} s; raise it with "
                "--processing-timeout SECONDS, and clients' timeouts with it"
            )

    def _start_failure(self, process: TritonProcess) -> str:
        status = process.exit_status()
        said = process.last_error()
        return f"Triton ended while starting (status {status}): {said or 'it said nothing'}; see {_short(self.log)}"

    def _watch(self) -> None:
        restarted_at: list[float] = []
        try:
            reason = self._wait_for_failure()
            while reason is not None:
                now = time.monotonic()
                restarted_at = [at for at in restarted_at if now - at < RESTART_WINDOW_S]
                if len(restarted_at) >= MAX_RESTARTS:
                    self.failure = RuntimeProblem(
                        f"{reason}; given up after {MAX_RESTARTS} restarts within {RESTART_WINDOW_S / 60:.0f} minutes; "
                        f"see {_short(self.log)}"
                    )
                    return
                wait_s = BACKOFF_S[min(len(restarted_at), len(BACKOFF_S) - 1)]
                restarted_at.append(now)
                reason = self._restart(reason, wait_s, len(restarted_at)) or self._wait_for_failure()
        except StartCancelled:
            pass
        except Exception as error:  # a supervisor that died silently would leave the server unsupervised
            self.failure = RuntimeProblem(f"the supervision failed: {error!r}; see {_short(self.log)}")
        finally:
            self._ended.set()

    def _restart(self, reason: str, wait_s: float, attempt: int) -> str | None:
        """Why the restart failed; None where the server is ready again."""
        later = f" in {wait_s:g} s" if wait_s else ""
        self._say(f"{reason}; restarting the server{later} ({attempt} of {MAX_RESTARTS})")
        begun, before = time.monotonic(), self._where
        # Requests in flight are lost with the dead process or will be retried; a quick restart helps callers more.
        self.process.stop(force=True)
        if self._stopping.wait(wait_s):
            raise StartCancelled
        try:
            self._launch()
        except RuntimeProblem as problem:
            return f"the restart failed: {problem}"
        self.restarts += 1
        moved = f": {self._where}" if self._where != before else ""
        self._say(f"ready again after {time.monotonic() - begun:.1f} s{moved}")
        return None

    def _wait_for_failure(self) -> str | None:
        """Why the running Triton failed; None when a stop was requested."""
        process = self.process
        stall_timeout_s = max(STALL_TIMEOUT_S, 2 * self._timeout_s)
        watch = HealthMonitor(self.probe, interval_s=self.options.canary_interval_s, stall_timeout_s=stall_timeout_s)
        try:
            while not self._stopping.wait(POLL_INTERVAL_S):
                gone = next((stub for stub in self._stubs if is_gone(stub)), None)
                if gone is not None and self._stopping.wait(POLL_INTERVAL_S):  # it may be Triton's end that ended it
                    return None
                status = process.exit_status()
                if status is not None:
                    return f"Triton ended by itself (status {status}: {process.last_error() or 'it said nothing'})"
                if gone is not None:
                    return f"the process of {gone.model} ({gone.pid}) is gone"
                failure = watch.check()
                if failure is not None:
                    return f"the server is unhealthy ({failure})"
            return None
        finally:
            watch.close()


def _short(path: Path) -> str:
    """The path as seen from the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
