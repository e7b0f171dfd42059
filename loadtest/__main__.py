"""Put a Cutaway server under load, and report.

python -m loadtest SCENARIO             against a server that it starts
python -m loadtest SCENARIO --url URL   against any
python -m loadtest worker --master HOST on further machines, to help sending
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import load_before
from loadtest import thresholds
from loadtest.driving import LOCUSTFILE, Sending, Target
from loadtest.running import OUTPUT, end_in_order, own_server, phases_of, run, say, target_of
from loadtest.scenarios import SCENARIOS
from runtime.checks import RuntimeProblem
from runtime.server import ServerOptions


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if importlib.util.find_spec("locust") is None:
        print("error: Locust is missing: pip install -r requirements/loadtest.txt", file=sys.stderr)
        return 2
    try:
        return int(options.run(options))
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def _scenario(options: argparse.Namespace) -> int:
    load, warning = load_before()
    if warning:
        say(warning)
    if options.requests and (options.workers or options.remote_workers):
        raise RuntimeProblem("--requests counts in one process: leave out --workers and --remote-workers")
    if (
        (options.loop or SCENARIOS[options.scenario].loop) == "open"
        and not options.rate
        and options.scenario != "overload"
    ):
        raise RuntimeProblem("an open loop needs --rate: requests per second, on average")
    if options.url:
        target = target_of(options.url, options.metrics_url)
        return _run(options, target, load)
    server = ServerOptions(profile=options.profile, instances=options.instances, queue_size=options.queue_size)
    with own_server(server, options.ways, say) as target:
        return _run(options, target, load)


def _run(options: argparse.Namespace, target: Target, load: float) -> int:
    folder = options.output / f"{options.scenario}-{time.strftime('%Y%m%d-%H%M%S')}"
    done = run(
        phases_of(
            options.scenario,
            loop=options.loop,
            users=options.users,
            rate=options.rate,
            seconds=options.seconds,
            requests=options.requests,
            factor=options.factor,
            capacity=options.capacity,
        ),
        scenario=options.scenario,
        sending=Sending(
            megapixels=",".join(f"{size:g}" for size in options.megapixels or ()),
            people=options.people or 0,
            timeout_s=options.timeout_s,
            max_in_flight=options.max_in_flight,
            workers=options.workers,
            remote_workers=options.remote_workers,
            bind=options.bind,
            seed=options.seed,
            web_port=options.web,
        ),
        target=target,
        folder=folder,
        say=say,
        load=load,
        options=options,
        compare=options.compare,
    )
    print((folder / "report.md").read_text())
    say(f"report: {folder / 'report.html'}")
    return 0 if thresholds.all_kept(done.verdicts) else 1


def _worker(options: argparse.Namespace) -> int:
    host, _, port = options.master.partition(":")
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker"]
    return subprocess.call([*command, f"--master-host={host}", f"--master-port={port or 5557}", *options.users])


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m loadtest",
        description="Put a Cutaway server under load, watch it, and write a report with plots (docs/load.md).",
    )
    commands = whole.add_subparsers(required=True, metavar="SCENARIO")
    common = _common()
    for scenario in SCENARIOS.values():
        loop = f"{scenario.users} users" if scenario.loop == "closed" else "Poisson arrivals"
        length = f"{scenario.requests:,} requests" if scenario.requests else f"{scenario.seconds:g} s"
        command = commands.add_parser(
            scenario.name,
            parents=[common],
            help=scenario.help,
            description=f"{scenario.help[0].upper()}{scenario.help[1:]}. By default {loop}, {length}.",
        )
        command.set_defaults(run=_scenario, scenario=scenario.name)
    worker = commands.add_parser(
        "worker",
        help="help a run on another machine with sending (--remote-workers there)",
        description="Help a run on another machine with sending: it waits for so many as its --remote-workers says.",
    )
    worker.add_argument("--master", required=True, metavar="HOST[:PORT]", help="where the run was started")
    worker.add_argument(
        "users", nargs="*", metavar="USERS", help="GrpcUser, HttpUser, as the run has them (default: GrpcUser)"
    )
    worker.set_defaults(run=_worker)
    return whole


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    server = common.add_argument_group("the server")
    server.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="grpc://HOST[:PORT] or http://HOST[:PORT]; both, and users take turns (default: a server is started)",
    )
    server.add_argument(
        "--metrics-url",
        metavar="URL",
        help="Triton's metrics (default: port 8002 of the same host, /metrics; '': none)",
    )
    server.add_argument("--profile", default="nano", help="of the server that is started (default: nano)")
    server.add_argument("--instances", type=int, metavar="N", help="of the server that is started: pictures at once")
    server.add_argument(
        "--queue-size", type=int, metavar="N", help="of the server that is started: pictures that may wait"
    )
    server.add_argument(
        "--ways",
        type=_ways,
        default=("grpc",),
        metavar="WAYS",
        help="to the server that is started: grpc, http or grpc,http",
    )
    load = common.add_argument_group("the load")
    load.add_argument(
        "--loop", choices=("closed", "open"), help="closed: users wait for answers; open: arrivals by chance"
    )
    load.add_argument("--users", type=int, metavar="N", help="of a closed loop")
    load.add_argument("--rate", type=float, metavar="X", help="of an open loop: requests per second, on average")
    load.add_argument("--seconds", type=float, metavar="S", help="how long requests are sent")
    load.add_argument("--requests", type=int, metavar="N", help="end after so many; 0 does not count")
    load.add_argument("--megapixels", type=_sizes, metavar="X,…", help="sizes of the pictures, 0.3 to 12 by themselves")
    load.add_argument("--people", type=int, metavar="N", help="in each picture of a crowd")
    load.add_argument(
        "--factor", type=float, default=3.0, metavar="X", help="overload: times the capacity (default: 3)"
    )
    load.add_argument(
        "--capacity", type=float, metavar="X", help="overload: pictures per second (default: measured first)"
    )
    load.add_argument("--timeout-s", type=float, default=60.0, metavar="S", help="for each request (default: 60)")
    load.add_argument(
        "--max-in-flight", type=int, default=500, metavar="N", help="open loop, per process (default: 500)"
    )
    load.add_argument("--seed", type=int, default=1, help="of the requests' order and times (default: 1)")
    sending = common.add_argument_group("who sends")
    sending.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes on this machine (default: one alone)"
    )
    sending.add_argument(
        "--remote-workers", type=int, default=0, metavar="N", help="wait for so many from other machines"
    )
    sending.add_argument(
        "--bind",
        default="127.0.0.1",
        metavar="HOST[:PORT]",
        help="where workers are listened for (default: 127.0.0.1:5557)",
    )
    sending.add_argument(
        "--web",
        type=int,
        nargs="?",
        const=8089,
        metavar="PORT",
        help="with Locust's page on this port of 127.0.0.1 (8089); Ctrl-C ends the run",
    )
    report = common.add_argument_group("the report")
    report.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="DIR", help=f"default: {OUTPUT}")
    report.add_argument("--compare", type=Path, metavar="RUN", help="an earlier run's folder or run.json")
    thresholds.add_options(common)
    return common


def _ways(text: str) -> tuple[str, ...]:
    ways = tuple(text.split(","))
    if not set(ways) <= {"grpc", "http"}:
        raise argparse.ArgumentTypeError("grpc, http or grpc,http")
    return ways


def _sizes(text: str) -> tuple[float, ...]:
    try:
        sizes = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("numbers with commas between, such as 0.3,1,12") from None
    if not all(0.01 <= size <= 50 for size in sizes):
        raise argparse.ArgumentTypeError("0.01 to 50 megapixels")
    return sizes


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
