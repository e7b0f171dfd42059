"""How the time of a request grows with the people in the picture and with its megapixels (`make stress-growth`).

One caller alone. Rounds go through all pictures in turn: what else the machine does meanwhile meets them all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import figures, pictures
from loadtest.running import own_server
from loadtest.scenarios import SERVED, Ask
from loadtest.stress.common import Claim, Found, script_main
from loadtest.ways import Way
from runtime.checks import RuntimeProblem
from runtime.server import ServerOptions

PEOPLE = (1, 2, 3, 4, 6, 8, 10, 12)
MEGAPIXELS = (0.3, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0)
PEOPLE_MEGAPIXELS = 2.0
MAX_OFF_LINE = 0.2  # of the line's own value: further off is a cliff


def measure(options: argparse.Namespace, _folder: Path) -> Found:
    crowds = [Ask(f"{count} people", pictures.crowd(count, PEOPLE_MEGAPIXELS), {"subject": "each"}) for count in PEOPLE]
    portraits = [Ask(f"{size:g} MP", pictures.portrait(size)) for size in MEGAPIXELS]
    with own_server(ServerOptions(profile=options.profile), ("grpc",)) as target:
        times = _times(target.grpc, [*crowds, *portraits], options.rounds)
    people, crowd_ms = zip(*times[: len(crowds)], strict=True)
    by_people = line("people", "ms per person", people, crowd_ms)
    by_size = line("megapixels", "ms per megapixel", MEGAPIXELS, [ms for _, ms in times[len(crowds) :]])
    return Found(
        [by_people.pop("claim"), by_size.pop("claim")],
        {"people": by_people, "megapixels": by_size},
        "\n".join([*_table("people found", by_people), "", *_table("megapixels", by_size)]),
    )


def _times(address: str, wanted: Sequence[Ask], rounds: int) -> list[tuple[int, list[float]]]:
    """For each request the number of cut-outs, and its milliseconds in all rounds but the first, which warms up."""
    way = Way("gRPC", address)
    times: list[list[float]] = [[] for _ in wanted]
    people = [0] * len(wanted)
    for number in range(-1, rounds):
        for index, ask in enumerate(wanted):
            begun = time.perf_counter()
            reply = way.send(ask, f"{number}-{index}")
            elapsed_ms = (time.perf_counter() - begun) * 1000
            if reply.code != SERVED:
                raise RuntimeProblem(f"{ask.kind}: {reply.code}: {reply.message}")
            people[index] = len(reply.outputs["images"])
            if number >= 0:
                times[index].append(elapsed_ms)
    way.close()
    return list(zip(people, times, strict=True))


def line(what: str, unit: str, xs: Sequence[float], times: Sequence[list[float]]) -> dict[str, Any]:
    """The line through the medians, how far they are off it, and the claim."""
    medians = [statistics.median(ms) for ms in times]
    rise, height = figures.slope(xs, medians, relative=True)
    off = [abs(median - (height + rise * x)) / (height + rise * x) for x, median in zip(xs, medians, strict=True)]
    claim = Claim(
        f"time grows with the {what} along a line, at most {MAX_OFF_LINE:.0%} off it",
        f"{height:.0f} ms + {rise:.1f} {unit}; {max(off):.0%} off at worst",
        max(off) <= MAX_OFF_LINE and rise > 0,
    )
    return {"xs": list(xs), "ms": list(times), "rise_ms": rise, "height_ms": height, "off": off, "claim": claim}


def _table(head: str, found: dict[str, Any]) -> list[str]:
    rows = [f"| {head} | median ms | 10th to 90th percentile | off the line |", "|--:|--:|--:|--:|"]
    for x, ms, off in zip(found["xs"], found["ms"], found["off"], strict=True):
        low, high = np.percentile(ms, [10, 90])
        rows.append(f"| {x:g} | {statistics.median(ms):.0f} | {low:.0f}–{high:.0f} | {off:.0%} |")
    return rows


if __name__ == "__main__":
    sys.exit(script_main("growth", __doc__, measure, {"rounds": (7, "requests for each picture")}))
