"""Put a Cutaway server under load, and report.

python -m loadtest SCENARIO             against a server that it starts
python -m loadtest SCENARIO --url URL   against any
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import load_before
from loadtest import thresholds
from loadtest.running import OUTPUT, Target, end_in_order, own_server, phases_of, run, say, target_of
from loadtest.scenarios import SCENARIOS
from runtime.checks import RuntimeProblem
from runtime.server import ServerOptions

UNLIMITED = ("--free-per-minute=1000000", "--free-per-second=100000")
"""Below the gateway's limits, though all users have one address."""


def main(arguments: Sequence[str] | None = None) -> int:
    options, locust_options = parser().parse_known_args(arguments)
    if importlib.util.find_spec("locust") is None:
        print("error: Locust is missing: pip install -r requirements/loadtest.txt", file=sys.stderr)
        return 2
    try:
        return _main(options, locust_options)
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace, locust_options: Sequence[str]) -> int:
    load = load_before()
    loop = options.loop or SCENARIOS[options.scenario].loop
    if loop == "open" and not options.rate and options.scenario != "overload":
        raise RuntimeProblem("an open loop needs --rate: requests per second, on average")
    if options.requests and any(each.startswith(("--processes", "--master")) for each in locust_options):
        raise RuntimeProblem("--requests counts in one process: leave out --processes and --master")
    if options.url:
        return _run(options, locust_options, target_of(options.url, options.metrics_url), load)
    server = ServerOptions(profile=options.profile, instances=options.instances, queue_size=options.queue_size)
    if options.scenario == "gateway":
        server = replace(server, service_port=0, gateway_options=UNLIMITED)
    with own_server(server, options.ways.split(",")) as target:
        return _run(options, locust_options, target, load)


def _run(options: argparse.Namespace, locust_options: Sequence[str], target: Target, load: float) -> int:
    folder = options.output / f"{options.scenario}-{time.strftime('%Y%m%d-%H%M%S')}"
    given = ("loop", "users", "rate", "seconds", "requests", "factor")
    phases = phases_of(options.scenario, **{name: getattr(options, name) for name in given})
    done = run(phases, target, folder, load=load, options=options, locust_options=locust_options)
    print((folder / "report.md").read_text())
    say(f"report: {folder / done.seen[-1].phase.title}.html")
    return 0 if all(verdict.kept for verdict in done.verdicts) else 1


def parser() -> argparse.ArgumentParser:
    doc = "Put a Cutaway server under load, watch it, and write a report (docs/load.md)."
    whole = argparse.ArgumentParser(prog="python -m loadtest", description=doc)
    commands = whole.add_subparsers(required=True, metavar="SCENARIO", dest="scenario")
    common = _common()
    for scenario in SCENARIOS.values():
        commands.add_parser(
            scenario.name,
            parents=[common],
            allow_abbrev=False,
            help=scenario.help,
            description=f"{scenario.help[0].upper()}{scenario.help[1:]}. By default {scenario.users} users.",
            epilog="Any other option is Locust's or its file's: --processes 4, --megapixels 0.3,1, --people 6, "
            "--timeout-s 60, --think-s 5, --max-in-flight 500, --seed 1.",
        )
    return whole


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    server = common.add_argument_group("the server")
    add = server.add_argument
    add("--url", action="append", metavar="URL", help="grpc://HOST[:PORT] or http://HOST[:PORT]; both: users alternate")
    add("--metrics-url", metavar="URL", help="Triton's metrics (default: port 8002 of the same host; '': none)")
    add("--profile", default="nano", help="of the server that is started (default: nano)")
    add("--instances", type=int, metavar="N", help="of the server that is started: pictures at once")
    add("--queue-size", type=int, metavar="N", help="of the server that is started: pictures that may wait")
    add("--ways", choices=("grpc", "http", "grpc,http"), default="grpc", help="to the server that is started")
    add = common.add_argument_group("the load").add_argument
    add("--loop", choices=("closed", "open"), help="closed: users wait for answers; open: arrivals by chance")
    add("--users", type=int, metavar="N", help="of a closed loop")
    add("--rate", type=float, metavar="X", help="of an open loop: requests per second, on average")
    add("--seconds", type=float, metavar="S", help="how long requests are sent")
    add("--requests", type=int, metavar="N", help="end after so many; 0 does not count")
    add("--factor", type=float, default=3.0, metavar="X", help="overload: times the peak (default: 3)")
    common.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="DIR", help=f"default: {OUTPUT}")
    thresholds.add_options(common)
    return common


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
