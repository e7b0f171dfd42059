"""The report of `benchmarks.side_by_side` for people: tables, what was wanted, and a plot.

Intervals are by bootstrap over whole rounds: requests of one round saw the same minute of the machine, and are not
independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import sentence

OVERHEAD = 1.10  # of the networks' own time, beside reading and writing the picture, at one client
AGAINST = "rembg s"
WANTED = {1.0: 2.0, 12.0: 3.0}  # times the throughput of `AGAINST` at the most clients, by megapixels
WANTED_P99 = 0.5
OURS = ("Cutaway, gRPC, people", "Cutaway, gRPC, all")
COLOURS = ("#0b5fa5", "#6aaed6", "#1b7837", "#7fbf7b", "#d95f02", "#7570b3")

DRAWS = 2000
SURE = 0.95
Statistic = Callable[[Sequence[float]], float]
Rounds = Sequence[Sequence[float]]  # the values of each round, at least one round with a value


class Figure(NamedTuple):
    """A value and the interval that holds it in 95 of 100 such runs."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def percentile_99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


def figure(rounds: Rounds, statistic: Statistic = median) -> Figure:
    """A statistic of all values together."""
    return _interval(rounds, lambda drawn: statistic(_pooled(rounds, drawn)))


def ratio(above: Rounds, below: Rounds, statistic: Statistic = median) -> Figure:
    """A statistic of some values against that of others, measured in the same rounds."""
    return _interval(above, lambda drawn: statistic(_pooled(above, drawn)) / statistic(_pooled(below, drawn)))


def _pooled(rounds: Rounds, drawn: Sequence[int] | None = None) -> list[float]:
    return [value for index in (range(len(rounds)) if drawn is None else drawn) for value in rounds[index]]


def _interval(rounds: Rounds, of: Callable[[Sequence[int]], float]) -> Figure:
    draws = [of(drawn.tolist()) for drawn in np.random.default_rng(0).integers(0, len(rounds), (DRAWS, len(rounds)))]
    low, high = np.quantile(draws, [(1 - SURE) / 2, (1 + SURE) / 2])
    return Figure(of(range(len(rounds))), float(low), float(high))


Report = dict[str, Any]
Of = Callable[[Report], Figure]


def p50(run: Report) -> Figure:
    return figure(run["latencies_ms"])


def p99(run: Report) -> Figure:
    return figure(run["latencies_ms"], percentile_99)


def per_second(run: Report) -> Figure:
    return figure(run["per_second"])


def markdown(report: Report) -> str:
    """The report as a page: the figures, what was wanted, who does what, the machine."""
    sizes = [picture["megapixels"] for picture in report["pictures"]]
    counts = sorted({run["clients"] for run in report["runs"]})
    peers = ", ".join(f"{name} {version}" for name, version in report["peer_versions"].items())
    worst: dict[str, float] = {}
    for each in report["alpha_differences"]:
        worst[each["contender"]] = max(worst.get(each["contender"], 0.0), each["mean_of_255"])
    lines = [
        f"# Side by side, {report['date'][:10]}",
        "",
        f"Profile {report['profile']}, {report['rounds']} rounds; Cutaway with {report['instances']} pipelines and "
        f"{report['threads']} threads per network, the others with their defaults. {sentence(report)} "
        f"The others' environment: {peers}.",
        "",
        "Medians, with the interval that holds them in 95 of 100 such runs (rounds drawn anew).",
        "",
    ]
    for count in counts:
        lines += _figures(report, sizes, count, "milliseconds of a request", p50, 0)
        if count > 1:
            lines += _figures(report, sizes, count, "answers per second", per_second, 1)
            lines += _figures(report, sizes, count, "milliseconds of the slowest hundredth", p99, 0)
    lines += ["## The floor: milliseconds of the parts alone", "", *_head("stage", sizes)]
    for stage in report["floor_ms"][0]["stages"]:
        cells = [_words(figure(_floors(report, size)[stage]), 1) for size in sizes]
        lines.append(f"| {' | '.join([stage, *cells])} |")
    lines += ["", "## What was wanted", "", *_verdicts(report, sizes, counts), "", "## What each does", ""]
    lines += [
        f"- **{each['name']}** {each['does']}; mean difference from the network's own alpha of the whole picture, of "
        f"255: {worst[each['name']]:.2f} at worst."
        for each in report["contenders"]
    ]
    return "\n".join([*lines, ""])


def _figures(report: Report, sizes: Sequence[float], clients: int, what: str, of: Of, digits: int) -> list[str]:
    """A figure of every contender and size."""
    lines = [f"## {_clients(clients)}: {what}", "", *_head("", sizes)]
    for each in report["contenders"]:
        cells = [_words(of(find(report, size, clients, each["name"])), digits) for size in sizes]
        lines.append(f"| {' | '.join([each['name'], *cells])} |")
    return [*lines, ""]


def _head(first: str, sizes: Sequence[float]) -> list[str]:
    return [f"| {' | '.join([first, *(f'{size:g} MP' for size in sizes)])} |", f"|---|{'--:|' * len(sizes)}"]


def _verdicts(report: Report, sizes: Sequence[float], counts: Sequence[int]) -> list[str]:
    lines = []
    for size in sizes if 1 in counts else ():
        floors = _floors(report, size)
        bound = [
            [OVERHEAD * (detect + matte) + decode + encode for decode, detect, matte, encode in zip(*each, strict=True)]
            for each in zip(*(floors[name] for name in ("decode", "detect", "matte", "encode")), strict=True)
        ]
        took = find(report, size, 1, OURS[0])["latencies_ms"]
        share = ratio(took, bound)
        lines.append(
            f"- {size:g} MP, one client, {OURS[0]}: {median(_pooled(took)):.0f} ms, wanted at most "
            f"{median(_pooled(bound)):.0f} ({OVERHEAD:.2f} × the networks, and decode and encode): "
            f"{_words(share, 2)} of that, {_met(share.value <= 1)}."
        )
    most = max(counts)
    for size in sizes if most > 1 else ():
        wanted = WANTED.get(size)
        theirs = find(report, size, most, AGAINST)
        for name in OURS:
            mine = find(report, size, most, name)
            faster = ratio(mine["per_second"], theirs["per_second"])
            slowest = ratio(mine["latencies_ms"], theirs["latencies_ms"], percentile_99)
            asked = "" if wanted is None else f" (at least {wanted:g} wanted: {_met(faster.value >= wanted)})"
            lines.append(
                f"- {size:g} MP, {most} clients, {name}: {_words(faster, 2)} times the throughput of {AGAINST}{asked}, "
                f"p99 {_words(slowest, 2)} times (at most {WANTED_P99:g} wanted: {_met(slowest.value <= WANTED_P99)})."
            )
    return lines


def find(report: Report, megapixels: float, clients: int, contender: str) -> Report:
    """The run of one contender, size and number of clients."""
    wanted = {"megapixels": megapixels, "clients": clients, "contender": contender}
    return next(run for run in report["runs"] if wanted.items() <= run.items())


def _floors(report: Report, megapixels: float) -> dict[str, Rounds]:
    stages: dict[str, Rounds] = next(each["stages"] for each in report["floor_ms"] if each["megapixels"] == megapixels)
    return stages


def _words(value: Figure, digits: int) -> str:
    return f"{value.value:.{digits}f} ({value.low:.{digits}f}–{value.high:.{digits}f})"


def _met(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def _clients(count: int) -> str:
    return "one client" if count == 1 else f"{count} clients"


def draw(report: Report, path: Path) -> None:
    """A PNG with latency at the least clients, throughput and p99 at the most, over the size of the picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [picture["megapixels"] for picture in report["pictures"]]
    counts = sorted({run["clients"] for run in report["runs"]})
    panels: tuple[tuple[str, Of, int], ...] = (
        ("p50, ms", p50, counts[0]),
        ("answers per second", per_second, counts[-1]),
        ("p99, ms", p99, counts[-1]),
    )
    fig, axes = plt.subplots(1, len(panels), figsize=(15, 5), layout="constrained")
    places = np.arange(len(sizes))
    names = [each["name"] for each in report["contenders"]]
    width = 0.84 / len(names)
    for axis, (title, of, clients) in zip(axes, panels, strict=True):
        for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            found = [of(find(report, size, clients, name)) for size in sizes]
            errors = np.array([[each.value - each.low, each.high - each.value] for each in found]).T.clip(0).tolist()
            at = places + (index - (len(names) - 1) / 2) * width
            heights = [each.value for each in found]
            axis.bar(at, heights, width, label=name, color=colour, yerr=errors, error_kw={"lw": 0.8})
        axis.set(yscale="log", title=f"{_clients(clients)}: {title}", axisbelow=True)
        axis.set_xticks(places, [f"{size:g} MP" for size in sizes])
        axis.grid(axis="y", which="both", lw=0.3)
    for place, size in zip(places, sizes, strict=True):
        stages = _floors(report, size)
        networks = median([sum(pair) for pair in zip(_pooled(stages["detect"]), _pooled(stages["matte"]), strict=True)])
        label = "" if place else "both networks alone"
        axes[0].hlines(networks, place - 0.45, place + 0.45, color="black", lw=1.5, label=label)
    axes[0].legend(fontsize=8)
    host = report["machine"]
    fig.suptitle(f"{host['cpu']}, {host['cores']} cores; profile {report['profile']}; {report['date'][:10]}")
    fig.savefig(path, dpi=110)
    plt.close(fig)
