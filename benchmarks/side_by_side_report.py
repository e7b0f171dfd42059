"""The report of `benchmarks.side_by_side` for people: tables, what was wanted, and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import sentence
from benchmarks.spread import Figure, figure, median, percentile_99, ratio

OVERHEAD = 1.10
"""Of the networks' own time, beside reading and writing the picture, at one client."""
AGAINST = "rembg s"
WANTED = {1.0: 2.0, 12.0: 3.0}
"""Times the throughput of `AGAINST` at the most clients, by megapixels."""
WANTED_P99 = 0.5
OURS = ("Cutaway, gRPC, people", "Cutaway, gRPC, all")
COLOURS = ("#0b5fa5", "#6aaed6", "#1b7837", "#7fbf7b", "#d95f02", "#7570b3")

Report = dict[str, Any]
Rounds = list[list[float]]


def markdown(report: Report) -> str:
    """The report as a page: what was wanted, the figures, who does what, the machine."""
    sizes = [picture["megapixels"] for picture in report["pictures"]]
    counts = sorted({run["clients"] for run in report["runs"]})
    peers = ", ".join(f"{name} {version}" for name, version in report["peer_versions"].items())
    lines = [
        f"# Side by side, {report['date'][:10]}",
        "",
        f"Profile {report['profile']}, {report['rounds']} rounds; Cutaway with {report['instances']} pipelines and "
        f"{report['threads']} threads per network, the others with their defaults. {sentence(report)} "
        f"The others' environment: {peers}.",
        "",
        "Medians, with the interval that holds them in 95 of 100 such runs (rounds drawn anew).",
        "",
        *(line for count in counts for line in _table(report, sizes, count)),
        *(_stages_table(report, sizes) if 1 in counts else ()),
        "## The floor: milliseconds of the parts alone, in this process",
        "",
        *_floor_table(report, sizes),
        "",
        "## What was wanted",
        "",
        *_verdicts(report, sizes, counts),
        "",
        "## What each does",
        "",
        *(f"- **{each['name']}** {each['does']}." for each in report["contenders"]),
        "",
        "Mean difference from the network's own alpha of the whole picture, of 255, at worst: "
        + ", ".join(f"{name} {worst:.2f}" for name, worst in _differences(report).items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def _table(report: Report, sizes: Sequence[float], clients: int) -> list[str]:
    """A table for each thing that is measured with so many clients."""
    if clients == 1:
        return _figures(report, sizes, 1, "One client: milliseconds of a request", _latency)
    asked = _clients(clients)
    return [
        *_figures(
            report, sizes, clients, f"{asked}: answers per second", lambda run: _words(figure(run["per_second"]), 1)
        ),
        *_figures(report, sizes, clients, f"{asked}: milliseconds of a request", _latency),
        *_figures(
            report,
            sizes,
            clients,
            f"{asked}: milliseconds of the slowest hundredth",
            lambda run: _words(figure(run["latencies_ms"], percentile_99), 0),
        ),
        *_figures(
            report,
            sizes,
            clients,
            f"{asked}: the server's CPU milliseconds for an answer",
            lambda run: f"{figure(run['cpu_ms']).value:.0f}",
        ),
    ]


def _latency(run: Report) -> str:
    return _words(figure(run["latencies_ms"]), 0)


def _figures(
    report: Report, sizes: Sequence[float], clients: int, title: str, of: Callable[[Report], str]
) -> list[str]:
    """A figure of every contender and size."""
    lines = [f"## {title}", "", *_head("", sizes)]
    for each in report["contenders"]:
        cells = [of(find(report, size, clients, each["name"])) for size in sizes]
        lines.append(f"| {' | '.join([each['name'], *cells])} |")
    return [*lines, ""]


def _head(first: str, sizes: Sequence[float]) -> list[str]:
    head = [first, *(f"{size:g} MP" for size in sizes)]
    return [f"| {' | '.join(head)} |", f"|---|{'--:|' * len(sizes)}"]


def _stages_table(report: Report, sizes: Sequence[float]) -> list[str]:
    """Where the time of one client's requests goes; the rest is the way through client and Triton."""
    lines = ["## One client: where the time goes, milliseconds", ""]
    heads = [f"{size:g} MP, {name.rpartition(' ')[2]}" for size in sizes for name in OURS]
    lines += [f"| stage | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    runs = [find(report, size, 1, name) for size in sizes for name in OURS]
    for stage in runs[0]["stages_ms"][0][0]:
        cells = [f"{median([each[stage] for part in run['stages_ms'] for each in part]):.1f}" for run in runs]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    cells = [
        f"{median([ms - each['total'] for ms, each in zip(_pooled(run['latencies_ms']), said, strict=True)]):.1f}"
        for run in runs
        for said in [[each for part in run["stages_ms"] for each in part]]
    ]
    return [*lines, f"| the way | {' | '.join(cells)} |", ""]


def _floor_table(report: Report, sizes: Sequence[float]) -> list[str]:
    lines = _head("stage", sizes)
    for stage in report["floor_ms"][0]["stages"]:
        cells = [_words(figure(_floors(report, size)[stage]), 1) for size in sizes]
        lines.append(f"| {' | '.join([stage, *cells])} |")
    return lines


def _verdicts(report: Report, sizes: Sequence[float], counts: Sequence[int]) -> list[str]:
    lines = []
    if 1 in counts:
        for size in sizes:
            floors = _floors(report, size)
            bound = [
                [
                    OVERHEAD * (detect + matte) + decode + encode
                    for decode, detect, matte, encode in zip(*stages, strict=True)
                ]
                for stages in zip(*(floors[name] for name in ("decode", "detect", "matte", "encode")), strict=True)
            ]
            took = find(report, size, 1, OURS[0])["latencies_ms"]
            share = ratio(took, bound)
            lines.append(
                f"- {size:g} MP, one client, {OURS[0]}: {median(_pooled(took)):.0f} ms, wanted at most "
                f"{median(_pooled(bound)):.0f} ({OVERHEAD:.2f} × the networks, and decode and encode): "
                f"{_words(share, 2)} of that, {_met(share.value <= 1)}."
            )
    most = max(counts)
    if most > 1:
        for size in sizes:
            wanted = WANTED.get(size)
            theirs = find(report, size, most, AGAINST)
            for name in OURS:
                mine = find(report, size, most, name)
                faster = ratio(mine["per_second"], theirs["per_second"])
                slowest = ratio(mine["latencies_ms"], theirs["latencies_ms"], percentile_99)
                asked = "" if wanted is None else f" (at least {wanted:g} wanted: {_met(faster.value >= wanted)})"
                lines.append(
                    f"- {size:g} MP, {most} clients, {name}: {_words(faster, 2)} times the throughput of {AGAINST}"
                    f"{asked}, p99 {_words(slowest, 2)} times (at most {WANTED_P99:g} wanted: "
                    f"{_met(slowest.value <= WANTED_P99)})."
                )
    return lines


def find(report: Report, megapixels: float, clients: int, contender: str) -> Report:
    """The run of one contender, size and number of clients."""
    run: Report = next(
        run
        for run in report["runs"]
        if (run["megapixels"], run["clients"], run["contender"]) == (megapixels, clients, contender)
    )
    return run


def _floors(report: Report, megapixels: float) -> dict[str, Rounds]:
    stages: dict[str, Rounds] = next(each["stages"] for each in report["floor_ms"] if each["megapixels"] == megapixels)
    return stages


def _differences(report: Report) -> dict[str, float]:
    worst: dict[str, float] = {}
    for each in report["alpha_differences"]:
        worst[each["contender"]] = max(worst.get(each["contender"], 0.0), each["mean_of_255"])
    return worst


def _pooled(rounds: Rounds) -> list[float]:
    return [value for part in rounds for value in part]


def _words(value: Figure, digits: int) -> str:
    return f"{value.value:.{digits}f} ({value.low:.{digits}f}–{value.high:.{digits}f})"


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def draw(report: Report, path: Path) -> None:
    """A PNG with latency at one client, throughput and p99 at the most clients, over the size of the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [picture["megapixels"] for picture in report["pictures"]]
    counts = sorted({run["clients"] for run in report["runs"]})
    least, most = counts[0], counts[-1]
    panels: tuple[tuple[str, Callable[[Report], Figure], int], ...] = (
        (f"{_clients(least)}: p50, ms", lambda run: figure(run["latencies_ms"]), least),
        (f"{_clients(most)}: answers per second", lambda run: figure(run["per_second"]), most),
        (f"{_clients(most)}: p99, ms", lambda run: figure(run["latencies_ms"], percentile_99), most),
    )
    fig, axes = plt.subplots(1, len(panels), figsize=(15, 5), layout="constrained")
    places = np.arange(len(sizes))
    names = [each["name"] for each in report["contenders"]]
    width = 0.84 / len(names)
    for axis, (title, of, clients) in zip(axes, panels, strict=True):
        for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            figures = [of(find(report, size, clients, name)) for size in sizes]
            values = [each.value for each in figures]
            errors = [
                [max(0.0, each.value - each.low) for each in figures],
                [max(0.0, each.high - each.value) for each in figures],
            ]
            at = places + (index - (len(names) - 1) / 2) * width
            axis.bar(at, values, width, label=name, color=colour, yerr=errors, error_kw={"lw": 0.8})
        axis.set_yscale("log")
        axis.set_xticks(places, [f"{size:g} MP" for size in sizes])
        axis.set_title(title)
        axis.grid(axis="y", which="both", lw=0.3)
        axis.set_axisbelow(True)
    for place, size in zip(places, sizes, strict=True):
        stages = _floors(report, size)
        together = zip(_pooled(stages["detect"]), _pooled(stages["matte"]), strict=True)
        networks = median([sum(pair) for pair in together])
        axes[0].hlines(
            networks, place - 0.45, place + 0.45, color="black", lw=1.5, label="" if place else "both networks alone"
        )
    axes[0].legend(fontsize=8)
    host = report["machine"]
    fig.suptitle(f"{host['cpu']}, {host['cores']} cores; profile {report['profile']}; {report['date'][:10]}")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _clients(count: int) -> str:
    return "one client" if count == 1 else f"{count} clients"
