"""One run from its phases to its report."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from loadtest import page, plots, thresholds
from loadtest.driving import Phase, Seen, Sending, Target, drive
from loadtest.figures import figures
from loadtest.scenarios import SCENARIOS, Sizes
from loadtest.thresholds import Verdict
from loadtest.watching import pid_at
from runtime.checks import RuntimeProblem
from runtime.server import Server, ServerOptions

OUTPUT = Path("load-output")
PACKAGES = ("cutaway", "tritonclient", "grpcio", "locust", "nvidia-pytriton", "onnxruntime", "numpy")
DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
METRICS_PORT = 8002
PEAK_SHARE = 1 / 3
"""Of an overload's time is for finding out how much the server can do."""


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        folder: with report.html, report.md, run.json and the logs.
        figures: as in run.json.
        seen: the phases.
        verdicts: on the thresholds that were asked for.
    """

    folder: Path
    figures: dict[str, Any]
    seen: list[Seen]
    verdicts: list[Verdict]


def end_in_order() -> None:
    """Let SIGTERM do what Ctrl-C does: what was started is ended on the way out."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def installed(packages: Sequence[str]) -> list[str]:
    """Those that are there as packages: in a container Cutaway itself lies there as files."""
    found = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            found.append(name)
    return found


def say(line: str) -> None:
    print(f"load: {line}", flush=True)


@contextlib.contextmanager
def own_server(options: ServerOptions, ways: Sequence[str], say: Callable[[str], None]) -> Iterator[Target]:
    """A server for the time of a run."""
    # The server's own small pictures would count as requests.
    with Server(replace(options, canary_interval_s=3600.0), say=say) as server:
        yield Target(
            grpc=server.grpc_address if "grpc" in ways else "",
            http=server.http_address if "http" in ways else "",
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
    phases: Callable[[list[Seen]], Phase | None],
    *,
    scenario: str,
    sending: Sending,
    target: Target,
    folder: Path,
    say: Callable[[str], None],
    load: float,
    options: argparse.Namespace | None = None,
    compare: Path | None = None,
) -> Run:
    """Run phase after phase, and write the report.

    Args:
        phases: the next phase, given those that are over; None when there is none.
        scenario: its name, for the report.
        sending, target: see there.
        folder: to write into; made where it is missing.
        say: takes each line for the user.
        load: the machine's, before.
        options: with the thresholds.
        compare: the run.json of an earlier run.

    Raises:
        RuntimeProblem: Locust could not send, or `compare` cannot be read.
    """
    before = None if compare is None else read_run(compare)
    folder.mkdir(parents=True, exist_ok=True)
    # Making pictures takes time that is none of the run's.
    SCENARIOS[scenario].mix(Sizes.read(sending.megapixels, sending.people))
    seen: list[Seen] = []
    while (phase := phases(seen)) is not None:
        seen.append(drive(phase, sending, target, folder, say))
    found = [figures(each) for each in seen]
    senders = max(1, sending.workers + sending.remote_workers)
    result: dict[str, Any] = {
        "scenario": scenario,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "target": " and ".join(
            f"{name} {address}" for name, address in (("gRPC", target.grpc), ("HTTP", target.http)) if address
        ),
        "sent_from": f"{senders} sending process{'es' if senders > 1 else ''}",
        "machine": machine(load),
        "versions": versions(installed(PACKAGES)),
        "phases": found,
        "result": found[-1],
    }
    verdicts = [] if options is None else thresholds.judge(result, options)
    result["thresholds"] = [verdict.text for verdict in verdicts]
    drawn = {each.phase.name: plots.plots(each) for each in seen}
    (folder / "run.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "report.md").write_text(page.markdown(result, verdicts, before))
    (folder / "report.html").write_text(page.page(result, verdicts, drawn, before))
    return Run(folder, result, seen, verdicts)


def read_run(path: Path) -> dict[str, Any]:
    """An earlier run, from its run.json or the folder that holds it.

    Raises:
        RuntimeProblem: it is not there, or is none.
    """
    file = path / "run.json" if path.is_dir() else path
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        found["result"]["phase"]["loop"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RuntimeProblem(f"{file} is not the run.json of an earlier run: {error!r}") from None
    return found


def phases_of(
    name: str,
    *,
    loop: str | None = None,
    users: int | None = None,
    rate: float | None = None,
    seconds: float | None = None,
    requests: int | None = None,
    factor: float = 3.0,
    capacity: float | None = None,
) -> Callable[[list[Seen]], Phase | None]:
    """The phases of a scenario; what is None is as the table says.

    An overload has two: a closed loop that finds out how many pictures per second the server can do, unless `capacity`
    says so, and an open loop with `factor` times as many.
    """
    scenario = SCENARIOS[name]
    seconds = scenario.seconds if seconds is None else seconds
    plain = Phase(
        name=name,
        scenario=name,
        loop="open" if (loop or scenario.loop) == "open" else "closed",
        users=users or scenario.users,
        rate=rate or 1.0,
        seconds=seconds,
        ramp=scenario.ramp,
        requests=scenario.requests if requests is None else requests,
    )
    if name != "overload":
        return lambda seen: None if seen else plain

    def overload(seen: list[Seen]) -> Phase | None:
        if capacity is None and not seen:
            return replace(plain, name="peak", loop="closed", seconds=seconds * PEAK_SHARE)
        if len(seen) > (capacity is None):
            return None
        peak = figures(seen[0])["throughput_per_s"] if capacity is None else capacity
        if not peak > 0:
            raise RuntimeProblem("no picture was served while the server's capacity was measured")
        left = seconds * (1 - PEAK_SHARE) if capacity is None else seconds
        return replace(plain, loop="open", rate=factor * peak, seconds=left)

    return overload
