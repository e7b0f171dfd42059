"""Thousands of mixed and bad requests: does anything grow that should not? (`make stress-soak`)

Sizes from 0.3 to 12 megapixels, all subjects and forms of output, detections, and every kind of bad file.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from loadtest import figures
from loadtest.running import Run, Target, own_server, phases_of, run, say
from loadtest.scenarios import MIXES, Sizes
from loadtest.stress.common import Claim, Found, script_main
from loadtest.watching import TRITON, Processes, processes_of
from loadtest.ways import Way
from runtime.server import ServerOptions

MAX_RSS_MB_PER_1000 = 1.0
SETTLE_S = 3.0
"""After the last answer: connections are closed, and what was freed is given back."""
SKIP_SHARE = 0.25
ROUND_S = 240.0


def measure(options: argparse.Namespace, folder: Path) -> Found:
    with own_server(ServerOptions(profile=options.profile), ("grpc", "http")) as target:
        assert target.pid is not None
        warmed = warm_up(target, options.users, options.warm_up)
        time.sleep(SETTLE_S)
        before = processes_of(target.pid)
        done = run(phases_of("soak", requests=options.requests, users=options.users), target, folder)
        time.sleep(SETTLE_S)
        after = processes_of(target.pid)
    assert before is not None and after is not None, "the server's process is gone"
    return judge(done, before, after, warmed)


def warm_up(target: Target, users: int, rounds: int) -> int:
    """Ask everything before anything is measured: threads, connections, heaps and shared memory for the largest picture
    in each of the server's processes are then there. How many requests that were.

    In each round all users first ask the same at the same time, the largest last: so the largest batches come, and the
    most of large pictures side by side, which chance brings late or never. Then each asks everything in an order of
    its own, as in the run.
    """
    wanted = sorted((ask for _, ask in MIXES["soak"](Sizes())), key=lambda ask: len(ask.data))
    say(f"warming up: {users} users, {rounds} rounds of {2 * len(wanted)} requests")
    together = threading.Barrier(users)

    def caller(number: int) -> None:
        way = Way("gRPC", target.grpc) if number % 2 == 0 else Way("HTTP", target.http)
        chance = random.Random(number)
        with closing(way):
            for turn in range(rounds):
                for index, ask in enumerate(wanted):
                    together.wait(ROUND_S)
                    way.send(ask, f"warm-together-{number}-{turn}-{index}")
                for index, ask in enumerate(chance.sample(wanted, len(wanted))):
                    way.send(ask, f"warm-{number}-{turn}-{index}")

    with ThreadPoolExecutor(users) as pool:
        list(pool.map(caller, range(users)))
    return users * rounds * 2 * len(wanted)


def judge(done: Run, before: Processes, after: Processes, warmed: int) -> Found:
    """The claims, from the run; looks at the idle server before and after it are told beside them."""
    result, seen = done.figures["result"], done.seen[-1]
    rises = {
        "Triton's own process": figures.memory_rise(seen, SKIP_SHARE, _is_triton),
        "the models' processes": figures.memory_rise(seen, SKIP_SHARE, lambda name: not _is_triton(name)),
    }
    claims = [_memory(name, rise, before, after) for name, rise in rises.items()]
    levels = figures.levels(seen, SKIP_SHARE)
    # A thread, a file or a region that comes once, when something first happens, is there before the second half. What
    # comes with requests goes on coming, and stays when they have ended; a peak of connections does not.
    for what, key in (("shared memory", "shm_mb"), ("threads", "threads"), ("open files", "fds")):
        first, second = (half[key] for half in levels) if levels is not None else (0.0, float("inf"))
        idle = getattr(before, key), getattr(after, key)
        claims.append(
            Claim(
                f"{what}: no more in the second half of the time after the first {SKIP_SHARE:.0%} than in the first, "
                "or none of it kept when idle",
                f"at most {first:.0f}, then {second:.0f}; idle {idle[0]:.0f} before, {idle[1]:.0f} after",
                levels is not None and (second <= first or idle[1] <= idle[0]),
            )
        )
    claims.append(
        Claim(
            "every answer is the right one",
            f"{result['failures']} wrong of {result['answers']:,}: {result['served']:,} served, "
            f"{result['expected_refusals']:,} refused as they should be",
            result["failures"] == 0,
        )
    )
    found = {name: asdict(rise) for name, rise in rises.items() if rise is not None}
    told = "; ".join(f"{name}: {', '.join(f'{mb:.0f}' for mb in rise['floors_mb'])}" for name, rise in found.items())
    return Found(
        claims,
        {"rise_mb_per_1000": found, "levels": levels, **result},
        f"{warmed} requests before, to warm up. Memory of their own that the processes had at least, in each tenth of "
        f"the time after the first {SKIP_SHARE:.0%}, MB: {told}. {result['answers_per_s']:.1f} answers per second.",
    )


def _is_triton(name: str) -> bool:
    return name.split()[0] == TRITON


def _memory(name: str, rise: figures.Rise | None, before: Processes, after: Processes) -> Claim:
    """That a part of the processes keeps no more memory over time."""
    first, last = (
        sum(mb for part, mb in look.parts_mb.items() if _is_triton(part) == name.startswith("Triton"))
        for look in (before, after)
    )
    return Claim(
        f"{name}: memory grows by at most {MAX_RSS_MB_PER_1000:g} MB in 1,000 answers after the first {SKIP_SHARE:.0%}",
        "too few looks"
        if rise is None
        else f"{rise.mb:+.2f} ± {rise.error_mb:.2f} MB (idle {first:.0f} MB before, {last:.0f} after)",
        rise is not None and rise.mb <= MAX_RSS_MB_PER_1000,
    )


if __name__ == "__main__":
    options = {
        "requests": (5000, "how many"),
        "warm-up": (2, "rounds of everything before"),
        "users": (4, "at once, half of them over HTTP"),
    }
    sys.exit(script_main("soak", __doc__, measure, options))
