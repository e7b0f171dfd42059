"""How the time of a request grows with the people in the picture and with its megapixels (`make stress-growth`).

One caller alone. Rounds go through all pictures in turn: what else the machine does meanwhile meets them all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtest import figures, pictures, plots
from loadtest.driving import Target
from loadtest.running import own_server, say
from loadtest.scenarios import SERVED, Ask
from loadtest.stress.common import Claim, Found, script_main
from loadtest.ways import Grpc
from runtime.checks import RuntimeProblem
from runtime.server import ServerOptions

PEOPLE = (1, 2, 3, 4, 6, 8, 10, 12)
MEGAPIXELS = (0.3, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0)
PEOPLE_MEGAPIXELS = 2.0
MAX_OFF_LINE = 0.2
"""Of the line's own value: further off is a cliff, or no line."""
TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    return script_main("growth", (__doc__ or "").split("\n\n")[0], _options, measure, arguments)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="requests for each picture (default: 7)")


def measure(options: argparse.Namespace, _folder: Path) -> Found:
    with own_server(ServerOptions(profile=options.profile), ("grpc",), say) as target:
        return grow(target, rounds=options.rounds, people=PEOPLE, megapixels=MEGAPIXELS, say=say)


def grow(
    target: Target, *, rounds: int, people: Sequence[int], megapixels: Sequence[float], say: Callable[[str], None]
) -> Found:
    """Measure both growths, and judge."""
    crowds = [Ask(f"{count} people", pictures.crowd(count, PEOPLE_MEGAPIXELS), {"subject": "each"}) for count in people]
    portraits = [Ask(f"{size:g} MP", pictures.portrait(size)) for size in megapixels]
    times = _times(target, [*crowds, *portraits], rounds, say)
    crowd_times, portrait_times = times[: len(crowds)], times[len(crowds) :]
    found = [found_people for found_people, _ in crowd_times]
    by_people = _line("people", "ms per person", found, [ms for _, ms in crowd_times])
    by_size = _line("megapixels", "ms per megapixel", megapixels, [ms for _, ms in portrait_times])
    return Found(
        [*by_people.pop("claims"), *by_size.pop("claims")],
        {"people": by_people, "megapixels": by_size},
        "\n".join([*_table("people found", by_people), "", *_table("megapixels", by_size)]),
        {
            "people": plots.svg(lambda axes: plots.line(axes, found, [ms for _, ms in crowd_times], "people")),
            "megapixels": plots.svg(
                lambda axes: plots.line(axes, megapixels, [ms for _, ms in portrait_times], "megapixels")
            ),
        },
    )


def _times(
    target: Target, wanted: Sequence[Ask], rounds: int, say: Callable[[str], None]
) -> list[tuple[int, list[float]]]:
    """For each request the number of cut-outs, and its milliseconds in all rounds but the first, which warms up."""
    way = Grpc(target.grpc, TIMEOUT_S)
    times: list[list[float]] = [[] for _ in wanted]
    people = [0] * len(wanted)
    say(f"{rounds} rounds of {len(wanted)} pictures")
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


def _line(what: str, unit: str, xs: Sequence[float], times: Sequence[list[float]]) -> dict[str, Any]:
    """The line through the medians, how far they are off it, and the claims."""
    medians = [statistics.median(ms) for ms in times]
    rise, height = figures.slope(xs, medians, relative=True)
    off = [abs(median - (height + rise * x)) / (height + rise * x) for x, median in zip(xs, medians, strict=True)]
    claims = [
        Claim(
            f"time grows with the {what} along a line, at most {MAX_OFF_LINE:.0%} off it",
            f"{height:.0f} ms + {rise:.1f} {unit}; {max(off):.0%} off at worst",
            max(off) <= MAX_OFF_LINE and rise > 0,
        )
    ]
    return {"xs": list(xs), "ms": list(times), "rise_ms": rise, "height_ms": height, "off": off, "claims": claims}


def _table(head: str, line: dict[str, Any]) -> list[str]:
    rows = [f"| {head} | median ms | 10th to 90th percentile | off the line |", "|--:|--:|--:|--:|"]
    for x, ms, off in zip(line["xs"], line["ms"], line["off"], strict=True):
        low, high = figures.percentile(ms, 10), figures.percentile(ms, 90)
        rows.append(f"| {x:g} | {statistics.median(ms):.0f} | {low:.0f}–{high:.0f} | {off:.0%} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
