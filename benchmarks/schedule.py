"""Throughput of the schedule `limited` against `free` (`python -m benchmarks.pipeline --schedules`).

A server of each runs all the time; in every round the same pictures go to both by as many callers, which first
alternates. What counts is the quotient of the two in one round: the machine's mood is the same for both.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import cutaway

from benchmarks.machine import head, load_before, say, sentence, spread
from runtime.schedule import SCHEDULES
from runtime.server import Server, ServerOptions

REQUESTS_PER_CALLER = 8


def measure(
    options: ServerOptions, pictures: Sequence[bytes], *, rounds: int, callers: int, packages: Sequence[str]
) -> dict[str, Any]:
    """All figures, as JSON values; the first round only warms up."""
    load = load_before()
    per_second: dict[str, list[float]] = {schedule: [] for schedule in SCHEDULES}
    with ExitStack() as stack:
        clients = {}
        for schedule in SCHEDULES:
            server = stack.enter_context(Server(replace(options, schedule=schedule), say=say))
            clients[schedule] = stack.enter_context(cutaway.Client(server.grpc_url, timeout_s=300))
        say(f"{rounds} rounds of {callers} callers with {REQUESTS_PER_CALLER} pictures each")
        for number in range(-1, rounds):
            for schedule in SCHEDULES if number % 2 else reversed(SCHEDULES):
                rate = throughput(clients[schedule], pictures, callers)
                if number >= 0:
                    per_second[schedule].append(rate)
    ratios = [limited / free for free, limited in zip(per_second["free"], per_second["limited"], strict=True)]
    return {
        **head(packages, load),
        "profile": options.profile,
        "device": options.device,
        "rounds": rounds,
        "callers": callers,
        "per_second": per_second,
        "ratios": ratios,
    }


def throughput(client: cutaway.Client, pictures: Sequence[bytes], callers: int) -> float:
    """Pictures a second while each caller sends its share, one after the other."""

    def send(number: int) -> None:
        for picture in itertools.islice(itertools.cycle(pictures), number, number + REQUESTS_PER_CALLER):
            client.cut(picture)

    begun = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(send, range(callers)))
    return callers * REQUESTS_PER_CALLER / (time.perf_counter() - begun)


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [
        f"# Schedules, {report['date'][:10]}",
        "",
        f"Profile {report['profile']}, device {report['device']}, {report['rounds']} rounds of {report['callers']} "
        f"callers, on {sentence(report)}",
        "",
        "Pictures a second: median (10th to 90th percentile).",
        "",
        "| schedule | pictures a second |",
        "|---|---|",
        *(f"| {schedule} | {spread(rates, 2)} |" for schedule, rates in report["per_second"].items()),
        "",
        f"- limited against free, within a round: {spread(report['ratios'], 2)}.",
    ]
    return "\n".join([*lines, ""])
