"""Three times as many requests as the server can do: what is served and what is shed (`make stress-overload`).

First a closed loop finds out how many pictures per second the server can do, then an open loop sends three times as
many, with pictures of one person and one megapixel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tritonclient.grpc
import tritonclient.http
from cutaway.contract.limits import PROCESSING_TIMEOUT_S

from loadtest import figures
from loadtest.running import Run, Target, own_server, phases_of, run
from loadtest.stress.common import Claim, Found, script_main
from runtime.compose import PIPELINE
from runtime.server import ServerOptions

MIN_PEAK_SHARE = 0.8
MAX_REFUSAL_MS = 250.0
"""Whoever is refused is told at once; on a machine whose cores are all busy that takes a little."""
MAX_RSS_MB_PER_MINUTE = 20.0
LAST_SHARE = 0.25


def measure(options: argparse.Namespace, folder: Path) -> Found:
    server = ServerOptions(profile=options.profile, queue_size=options.queue_size or None)
    with own_server(server, (options.way,)) as target:
        done = run(phases_of("overload", seconds=options.seconds, factor=options.factor), target, folder)
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
    begun_s, ended_s = figures.window(done.seen[-1])
    # A queue that fills takes memory, and what holds its requests in Triton and gRPC has its full size only when the
    # queue has been emptied and filled a few times. After that nothing more may be needed.
    looks = [
        (at_s, look.rss_mb)
        for at_s, look in figures.processes_over_time(done.seen[-1].samples)
        if begun_s + (ended_s - begun_s) * (1 - LAST_SHARE) <= at_s <= ended_s
    ]
    growth = 60 * figures.slope(*zip(*looks, strict=True))[0] if len(looks) > 2 else 0.0
    others = sorted(set(result["codes"]) - {"OVERLOADED"})
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
        claims, {"peak": peak, "overload": result}, f"Sent: {result['phase']['rate']:.1f} requests/s on average."
    )


if __name__ == "__main__":
    options = {
        "seconds": (180.0, "a third of it to find the peak"),
        "factor": (3.0, "times the peak"),
        "queue-size": (0, "pictures that may wait; 0: as the server has it"),
        "way": ("grpc", "or http"),
    }
    sys.exit(script_main("overload", __doc__, measure, options))
