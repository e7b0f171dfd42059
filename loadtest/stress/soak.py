"""Thousands of mixed and bad requests: does anything grow that should not? (`make stress-soak`)

Sizes from 0.3 to 12 megapixels, all subjects and forms of output, detections, and every kind of bad file.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loadtest import figures, plots
from loadtest.driving import Sending, Target
from loadtest.running import Run, own_server, phases_of, run, say
from loadtest.scenarios import SCENARIOS, Sizes
from loadtest.stress.common import Claim, Found, script_main
from loadtest.watching import Processes, processes_of
from loadtest.ways import Grpc, Http, Way
from runtime.server import ServerOptions

MAX_RSS_MB_PER_1000 = 1.0
SETTLE_S = 3.0
"""After the last answer: connections are closed, and what was freed is given back."""
SKIP_SHARE = 0.25
TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    return script_main("soak", (__doc__ or "").split("\n\n")[0], _options, measure, arguments)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=5000, help="how many (default: 5000)")
    parser.add_argument("--warm-up", type=int, default=2, metavar="N", help="rounds of everything before (default: 2)")
    parser.add_argument("--users", type=int, default=4, help="at once, half of them over HTTP (default: 4)")


def measure(options: argparse.Namespace, folder: Path) -> Found:
    with own_server(ServerOptions(profile=options.profile), ("grpc", "http"), say) as target:
        assert target.pid is not None
        warmed = warm_up(target, options.users, options.warm_up)
        time.sleep(SETTLE_S)
        before = processes_of(target.pid)
        done = run(
            phases_of("soak", requests=options.requests, users=options.users),
            scenario="soak",
            sending=Sending(),
            target=target,
            folder=folder,
            say=say,
            load=0.0,
        )
        time.sleep(SETTLE_S)
        after = processes_of(target.pid)
    if before is None or after is None:
        return Found([Claim("the server lives on", "its process is gone", False)], {}, "", {})
    return judge(done, before, after, warmed)


def warm_up(target: Target, users: int, rounds: int) -> int:
    """Ask everything once or more, by all users at once: threads, connections, heaps and shared memory for the largest
    picture in each of the server's processes are then there. How many requests that were."""
    wanted = [ask for _, ask in SCENARIOS["soak"].mix(Sizes())]
    say(f"warming up: {users} users, {rounds} rounds of {len(wanted)} requests")

    def caller(number: int) -> None:
        way: Way = Grpc(target.grpc, TIMEOUT_S) if number % 2 == 0 else Http(target.http, TIMEOUT_S)
        chance = random.Random(number)
        for turn in range(rounds):
            for index, ask in enumerate(chance.sample(wanted, len(wanted))):
                way.send(ask, f"warm-{number}-{turn}-{index}")
        way.close()

    with ThreadPoolExecutor(users) as pool:
        list(pool.map(caller, range(users)))
    return users * rounds * len(wanted)


def judge(done: Run, before: Processes, after: Processes, warmed: int) -> Found:
    """The claims, from the run and from looks at the idle server before and after."""
    result, seen = done.figures["result"], done.seen[-1]
    rise = figures.memory_slope(seen, SKIP_SHARE)
    floors = figures.memory_floors(seen, SKIP_SHARE)
    claims = [
        Claim(
            f"memory grows by at most {MAX_RSS_MB_PER_1000:g} MB in 1,000 requests, after the first {SKIP_SHARE:.0%}",
            "too few looks"
            if rise is None
            else f"{rise:+.2f} MB ({before.rss_mb:.0f} MB before, {after.rss_mb:.0f} after)",
            rise is not None and rise <= MAX_RSS_MB_PER_1000,
        ),
        Claim(
            "shared memory does not grow", f"{before.shm_mb:.1f} → {after.shm_mb:.1f} MB", after.shm_mb <= before.shm_mb
        ),
        Claim("threads do not grow", f"{before.threads} → {after.threads}", after.threads <= before.threads),
        Claim("open files do not grow", f"{before.fds} → {after.fds}", after.fds <= before.fds),
        Claim(
            "every answer is the right one",
            f"{result['failures']} wrong of {result['answers']:,}: {result['served']:,} served, "
            f"{result['expected_refusals']:,} refused as they should be",
            result["failures"] == 0,
        ),
    ]
    return Found(
        claims,
        {"rise_mb_per_1000": rise, "floors_mb": floors, **result},
        f"{warmed} requests before, to warm up. What the processes had at least, in each tenth of the time after the "
        f"first {SKIP_SHARE:.0%}, MB: {', '.join(f'{mb:.0f}' for _, mb in floors)}. "
        f"{result['answers_per_s']:.1f} answers per second.",
        {"memory": plots.svg(lambda axes: plots.server(axes, seen))},
    )


if __name__ == "__main__":
    sys.exit(main())
