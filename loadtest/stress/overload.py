"""Three times as many requests as the server can do: what is served and what refused (`make stress-overload`).

First a closed loop finds out how many pictures per second the server can do, then an open loop sends three times as
many, with pictures of one person and one megapixel.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tritonclient.grpc
import tritonclient.http
from cutaway.contract.limits import PROCESSING_TIMEOUT_S

from loadtest import figures, plots
from loadtest.driving import Sending, Target
from loadtest.running import Run, own_server, phases_of, run, say
from loadtest.stress.common import Claim, Found, script_main
from runtime.compose import PIPELINE
from runtime.server import ServerOptions

MIN_PEAK_SHARE = 0.8
MAX_REFUSAL_MS = 250.0
"""Whoever is refused is told at once; on a machine whose cores are all busy that takes a little."""
MAX_RSS_MB_PER_MINUTE = 20.0
LAST_SHARE = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    return script_main("overload", (__doc__ or "").split("\n\n")[0], _options, measure, arguments)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=180.0, help="a third of it to find the peak (default: 180)")
    parser.add_argument("--factor", type=float, default=3.0, help="times the peak (default: 3)")
    parser.add_argument(
        "--queue-size", type=int, metavar="N", help="pictures that may wait (default: as the server has it)"
    )
    parser.add_argument("--way", choices=("grpc", "http"), default="grpc")


def measure(options: argparse.Namespace, folder: Path) -> Found:
    server = ServerOptions(profile=options.profile, queue_size=options.queue_size)
    with own_server(server, (options.way,), say) as target:
        done = run(
            phases_of("overload", seconds=options.seconds, factor=options.factor),
            scenario="overload",
            sending=Sending(),
            target=target,
            folder=folder,
            say=say,
            load=0.0,
        )
        places = queue_size(target)
    return judge(done, places)


def queue_size(target: Target) -> int:
    """How many pictures may wait, as the server itself says."""
    if target.grpc:
        with tritonclient.grpc.InferenceServerClient(target.grpc) as client:
            config = client.get_model_config(PIPELINE, as_json=True)["config"]
    else:
        with tritonclient.http.InferenceServerClient(target.http) as client:
            config = client.get_model_config(PIPELINE)
    return int(config["dynamic_batching"]["default_queue_policy"]["max_queue_size"])


def judge(done: Run, queue_size: int) -> Found:
    """The claims, from both phases."""
    peak, result = done.figures["phases"]
    share = result["throughput_per_s"] / peak["throughput_per_s"]
    served, refused = result["latency_ms"], result["refusal_ms"]
    # Whoever is served has waited for those before: as many as may wait, at the pace at which they are served.
    bound_ms = min(1000 * PROCESSING_TIMEOUT_S, 1500 * (queue_size + 2) / result["throughput_per_s"])
    seen = done.seen[-1]
    begun_s, ended_s = figures.window(seen.phase, seen.records)
    # A queue that fills takes memory, and what holds its requests in Triton and gRPC has its full size only when the
    # queue has been emptied and filled a few times. After that nothing more may be needed.
    looks = [
        (at_s, look.rss_mb)
        for at_s, look in figures.processes_over_time(seen.samples)
        if begun_s + (ended_s - begun_s) * (1 - LAST_SHARE) <= at_s <= ended_s
    ]
    growth = 60 * figures.slope([at_s for at_s, _ in looks], [rss for _, rss in looks])[0] if len(looks) > 2 else 0.0
    others = sorted({error["code"] for error in result["errors"]} - {"OVERLOADED"})
    claims = [
        Claim(
            f"serves at least {MIN_PEAK_SHARE:.0%} of the peak",
            f"{share:.0%}: {result['throughput_per_s']:.2f} of {peak['throughput_per_s']:.2f} pictures/s",
            share >= MIN_PEAK_SHARE,
        ),
        Claim(
            "refuses the rest with OVERLOADED only",
            f"{result['expected_refusals']} refused, other codes: {', '.join(others) or 'none'}",
            result["expected_refusals"] > 0 and result["failures"] == 0,
        ),
        Claim(
            f"refuses within {MAX_REFUSAL_MS:g} ms (p99)",
            "nothing refused" if refused is None else f"median {refused['p50']:.0f} ms, p99 {refused['p99']:.0f} ms",
            refused is not None and refused["p99"] <= MAX_REFUSAL_MS,
        ),
        Claim(
            f"serves within the time of a full queue of {queue_size}, {bound_ms / 1000:.1f} s (p99)",
            f"p50 {served['p50'] / 1000:.1f} s, p99 {served['p99'] / 1000:.1f} s",
            served["p99"] <= bound_ms,
        ),
        Claim(
            f"memory grows by at most {MAX_RSS_MB_PER_MINUTE:g} MB a minute in the last {LAST_SHARE:.0%} of the time",
            f"{growth:+.1f} MB a minute, {result['server']['rss_mb_most']:.0f} MB at most",
            growth <= MAX_RSS_MB_PER_MINUTE,
        ),
    ]
    return Found(
        claims,
        {"peak": peak, "overload": result},
        f"Offered: {result['offered_per_s']:.1f} requests per second. The whole report is in report.html.",
        {
            "answers": plots.svg(lambda axes: plots.rates(axes, seen)),
            "times": plots.svg(lambda axes: plots.times(axes, seen)),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
