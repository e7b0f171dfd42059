"""A run: the server, its phases, each of which is a run of Locust, and the report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import head
from loadtest import thresholds
from loadtest.figures import Seen, figures
from loadtest.report import markdown
from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.thresholds import Verdict
from loadtest.watching import free_port, look, pid_at
from runtime.checks import RuntimeProblem
from runtime.server import Server, ServerOptions

ROOT = Path(__file__).resolve().parents[1]
LOCUSTFILE = Path(__file__).resolve().parent / "locustfile.py"
OUTPUT = Path("load-output")
PACKAGES = ("cutaway", "tritonclient", "grpcio", "locust", "nvidia-pytriton", "onnxruntime", "numpy")
DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
METRICS_PORT = 8002
PEAK_SHARE = 1 / 3
"""Of an overload's time is for finding out how much the server can do."""
LOOK_S = 1.0
DRAIN_S, END_S = 90, 15
"""How long requests under way may take to end when the time is up, and Locust after them."""


class Target(NamedTuple):
    """A server: host:port for gRPC and HTTP, its metrics, each "" where there is none, and the process id of its
    tritonserver, where that runs on this machine."""

    grpc: str
    http: str
    metrics_url: str
    pid: int | None

    @property
    def users(self) -> list[str]:
        """The names of the classes of users in the locustfile."""
        return [name for name, address in (("GrpcUser", self.grpc), ("HttpUser", self.http)) if address]


class Run(NamedTuple):
    """What came of a run: figures as in run.json, its phases, the verdicts on the thresholds that were asked for."""

    figures: dict[str, Any]
    seen: list[Seen]
    verdicts: list[Verdict]


def end_in_order() -> None:
    """Let SIGTERM do what Ctrl-C does: what was started is ended on the way out."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def say(line: str) -> None:
    print(f"load: {line}", flush=True)


@contextlib.contextmanager
def own_server(options: ServerOptions, ways: Sequence[str]) -> Iterator[Target]:
    """A server for the time of a run, without its own small pictures, which would count as requests."""
    with Server(replace(options, canary_interval_s=3600.0), say=say) as server:
        service = server.service_url.removeprefix("http://")
        yield Target(
            grpc=server.grpc_address if "grpc" in ways and not service else "",
            http=service or (server.http_address if "http" in ways else ""),
            metrics_url=server.metrics_url,
            pid=server.process.pid,
        )


def target_of(urls: Sequence[str], metrics_url: str | None) -> Target:
    """The server behind URLs such as grpc://host:8001.

    Raises:
        RuntimeProblem: one of them is none of that kind, or comes twice.
    """
    addresses: dict[str, str] = {}
    for url in urls:
        scheme, separator, rest = url.partition("://")
        host, _, port = rest.rstrip("/").partition(":")
        if scheme not in DEFAULT_PORTS or not separator or not host or (port and not port.isdigit()):
            raise RuntimeProblem(f"{url} is no address: grpc://HOST[:PORT] or http://HOST[:PORT] is needed")
        if scheme in addresses:
            raise RuntimeProblem(f"{scheme}:// was given twice; one server is tested at a time")
        addresses[scheme] = f"{host}:{port or DEFAULT_PORTS[scheme]}"
    first = next(iter(addresses.values()))
    host = first.partition(":")[0]
    return Target(
        grpc=addresses.get("grpc", ""),
        http=addresses.get("http", ""),
        metrics_url=f"http://{host}:{METRICS_PORT}/metrics" if metrics_url is None else metrics_url,
        pid=pid_at(first),
    )


def run(
    phases: Callable[[list[Seen]], Scenario | None],
    target: Target,
    folder: Path,
    *,
    load: float = 0.0,
    options: argparse.Namespace | None = None,
    locust_options: Sequence[str] = (),
) -> Run:
    """Run phase after phase, and write run.json and report.md beside Locust's own reports.

    Args:
        phases: the next phase, given those that are over; None when there is none.
        load: the machine's, before.
        options: with the thresholds.

    Raises:
        RuntimeProblem: Locust could not send.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seen: list[Seen] = []
    while (phase := phases(seen)) is not None:
        seen.append(drive(phase, target, folder, locust_options))
    found = [figures(each) for each in seen]
    result: dict[str, Any] = {
        "scenario": seen[-1].phase.name,
        "target": " and ".join(
            f"{name} {address}" for name, address in (("gRPC", target.grpc), ("HTTP", target.http)) if address
        ),
        **head(PACKAGES, load),
        "phases": found,
        "result": found[-1],
    }
    verdicts = [] if options is None else thresholds.judge(result, options)
    result["thresholds"] = [verdict.text for verdict in verdicts]
    (folder / "run.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(result))
    return Run(result, seen, verdicts)


def drive(phase: Scenario, target: Target, folder: Path, locust_options: Sequence[str] = ()) -> Seen:
    """Run Locust for a phase, and look at the server once a second meanwhile.

    Ctrl-C ends the sending, and the report is of what was sent until then.

    Raises:
        RuntimeProblem: when Locust ends without having sent anything.
    """
    statistics, log = folder / f"{phase.title}.json", folder / f"{phase.title}.locust.log"
    statistics.unlink(missing_ok=True)  # of an earlier run in this folder
    samples = [look(target.metrics_url, target.pid)]
    how = f"{phase.rate:.3g} requests/s" if phase.loop == "open" else f"{phase.users} users"
    length = f"{phase.requests:,} requests" if phase.requests else f"{phase.seconds:g} s"
    say(f"{phase.title}: {how}, {length}; {log}")
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    command = [*_command(phase, target, folder), *locust_options]
    with log.open("w") as output:
        # A group of its own, so that Ctrl-C reaches this process alone, which then ends Locust and its workers.
        locust = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            while locust.poll() is None:
                time.sleep(LOOK_S)
                samples.append(look(target.metrics_url, target.pid))
        except KeyboardInterrupt:
            say("ending: requests under way are waited for (once more to stop at once)")
            locust.send_signal(signal.SIGINT)
            locust.wait(DRAIN_S + END_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(locust.pid, signal.SIGKILL)
            locust.wait()
    rows = json.loads(statistics.read_text()) if statistics.exists() else []
    seen = Seen(phase, rows, samples)
    if not seen.answers:
        lines = log.read_text().strip().splitlines()
        raise RuntimeProblem(f"Locust sent nothing: {lines[-1] if lines else 'it said nothing'}; see {log}")
    (folder / f"{phase.title}_server.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in samples))
    return seen


def _command(phase: Scenario, target: Target, folder: Path) -> list[str]:
    # Each user of an open loop is a stream of arrivals; streams of Poisson arrivals add up to one.
    users = phase.users if phase.loop == "closed" else len(target.users)
    spawn_rate = users / (0.9 * phase.seconds) if phase.ramp and phase.loop == "closed" else users
    port = free_port()
    return [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *target.users),
        *("--headless", "--only-summary", "--loglevel=WARNING", "--exit-code-on-error=0"),
        *(f"--stop-timeout={DRAIN_S}", f"--html={folder / phase.title}.html", f"--csv={folder / phase.title}"),
        *(f"--json-file={folder / phase.title}", f"--master-port={port}", f"--master-bind-port={port}"),
        *(() if phase.requests else (f"--run-time={max(1, round(phase.seconds))}s",)),
        *(f"--users={users}", f"--spawn-rate={spawn_rate}", f"--requests={phase.requests}"),
        *(f"--scenario={phase.name}", f"--grpc={target.grpc}", f"--http={target.http}"),
        *(f"--loop={phase.loop}", f"--rate={phase.rate / users}"),
        *(f"--grow-s={phase.seconds if phase.ramp else 0}", f"--think-s={phase.think_s}"),
    ]


def phases_of(name: str, *, factor: float = 3.0, **given: Any) -> Callable[[list[Seen]], Scenario | None]:
    """The phases of a scenario, with what is given (and not None) in place of the table's values.

    An overload has two: a closed loop that finds out how many pictures per second the server can do, and an open loop
    with `factor` times as many.
    """
    plain = replace(SCENARIOS[name], **{key: value for key, value in given.items() if value is not None})
    if name != "overload":
        return lambda seen: None if seen else plain

    def overload(seen: list[Seen]) -> Scenario | None:
        if not seen:
            return replace(plain, phase="peak", loop="closed", seconds=plain.seconds * PEAK_SHARE)
        if len(seen) > 1:
            return None
        found = figures(seen[0])
        # A short phase on a slow machine may have its first answer when no more is sent.
        peak = found["throughput_per_s"] or found["served"] / plain.seconds
        if not peak > 0:
            raise RuntimeProblem("no picture was served while the server's peak was measured")
        return replace(plain, loop="open", rate=factor * peak, seconds=plain.seconds * (1 - PEAK_SHARE))

    return overload
