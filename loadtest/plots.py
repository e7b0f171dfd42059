"""The plots of a report, as SVG inside the page."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from loadtest.driving import Seen
from loadtest.figures import (
    OUTSIDE,
    cpu_over_time,
    outcome,
    per_second,
    processes_over_time,
    slope,
    stages,
    window,
)

COLOURS = {"served": "#1b7f5c", "overloaded": "#e09f3e", "refused as expected": "#8d99ae", "wrong": "#c1121f"}
STAGE_COLOURS = ("#264653", "#2a9d8f", "#8ab17d", "#e9c46a", "#f4a261")
OUTSIDE_COLOUR = "#d9d9d9"
STYLE: Any = {
    "svg.hashsalt": "cutaway",  # the same picture for the same figures
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 110,
}
SIZE = (7.2, 2.9)


def plots(seen: Seen) -> dict[str, str]:
    """SVG by title. What was not measured is left out."""
    drawn: dict[str, str] = {
        "Time of each answer": svg(lambda axes: times(axes, seen)),
        "Answers per second": svg(lambda axes: rates(axes, seen)),
        "Share of the pictures that took at most so long": svg(lambda axes: _shares(axes, seen)),
    }
    if stages(record for record in seen.records if record.served):
        kinds = len({record.kind for record in seen.records if record.served})
        drawn["Where the time goes (means)"] = svg(lambda axes: _stages(axes, seen), (SIZE[0], 1.6 + 0.22 * kinds))
    if sum(bool(sample.models) for sample in seen.samples) > 1:
        drawn["Waiting and batches in Triton"] = svg(lambda axes: _models(axes, seen))
    if len(processes_over_time(seen.samples)) > 1:
        drawn["The server's CPU and memory"] = svg(lambda axes: server(axes, seen))
    return drawn


def svg(draw: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> str:
    """What `draw` draws, as an SVG element."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def times(axes: Axes, seen: Seen) -> None:
    begun_s, _ = window(seen.phase, seen.records)
    for name, colour in COLOURS.items():
        points = [(record.done_s - begun_s, record.latency_ms) for record in seen.records if outcome(record) == name]
        if points:
            # As pixels: thousands of points would make a page of megabytes.
            xs, ys = zip(*points, strict=True)
            axes.scatter(xs, ys, s=6, color=colour, label=name, alpha=0.7, linewidths=0, rasterized=True)
    axes.set(xlabel="seconds", ylabel="ms", yscale="log")
    _plain_numbers(axes.yaxis)
    axes.legend(loc="lower right", frameon=False)


def rates(axes: Axes, seen: Seen) -> None:
    begun_s, _ = window(seen.phase, seen.records)
    counts = {name: values for name, values in per_second(seen.records, begun_s).items() if any(values)}
    seconds = np.arange(len(next(iter(counts.values()))))
    axes.stackplot(
        seconds, list(counts.values()), labels=list(counts), colors=[COLOURS[name] for name in counts], step="post"
    )
    axes.set(xlabel="seconds", ylabel="answers per second")
    axes.legend(loc="upper right", frameon=False)


def _shares(axes: Axes, seen: Seen) -> None:
    kinds = sorted({record.kind for record in seen.records if record.served})
    for kind in kinds:
        times = np.sort([record.latency_ms for record in seen.records if record.served and record.kind == kind])
        axes.plot(times, np.arange(1, len(times) + 1) / len(times), drawstyle="steps-post", label=kind)
    for share in (0.5, 0.95, 0.99):
        axes.axhline(share, color="black", linewidth=0.5, linestyle=":")
    axes.set(xlabel="ms", ylabel="share", xscale="log", ylim=(0, 1.02))
    _plain_numbers(axes.xaxis)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)


def _plain_numbers(axis: Axis) -> None:
    """200 and 1000 on a logarithmic axis, not powers of ten."""
    for put in (axis.set_major_formatter, axis.set_minor_formatter):
        put(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))


def _stages(axes: Axes, seen: Seen) -> None:
    kinds = sorted({record.kind for record in seen.records if record.served}, reverse=True)
    names = [stage for stage in stages(record for record in seen.records if record.served) if stage != OUTSIDE]
    colours = [*itertools.islice(itertools.cycle(STAGE_COLOURS), len(names)), OUTSIDE_COLOUR]
    for row, kind in enumerate(kinds):
        found = stages(record for record in seen.records if record.served and record.kind == kind)
        left = 0.0
        for stage, colour in zip((*names, OUTSIDE), colours, strict=True):
            mean = found[stage]["mean"] if stage in found else 0.0
            axes.barh(row, mean, left=left, color=colour, label=stage if row == 0 else None)
            left += mean
    axes.set(xlabel="ms", yticks=range(len(kinds)), yticklabels=kinds)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=6, frameon=False, fontsize=7)


def _models(axes: Axes, seen: Seen) -> None:
    begun_s, _ = window(seen.phase, seen.records)
    with_metrics = [sample for sample in seen.samples if sample.models]
    seconds = [sample.at_s - begun_s for sample in with_metrics]
    batches = axes.twinx()
    batches.grid(False)
    for number, model in enumerate(sorted(with_metrics[-1].models)):
        colour = f"C{number}"
        queued = _rises(with_metrics, model, "queue_duration_us", "request_success", 1e-3)
        batch = _rises(with_metrics, model, "count", "exec_count", 1.0)
        axes.plot(seconds[1:], queued, color=colour, label=model)
        batches.plot(seconds[1:], batch, color=colour, linestyle=":")
    axes.set(xlabel="seconds", ylabel="ms in the queue (line)")
    axes.set_yscale("symlog", linthresh=1.0)
    batches.set(ylabel="mean batch (dots)", ylim=(0, 8.4))
    axes.legend(loc="upper left", frameon=False)


def _rises(samples: Sequence[Any], model: str, above: str, below: str, factor: float) -> list[float]:
    """Between one look and the next: how much one counter rose for each unit by which another did."""
    found = []
    for before, now in itertools.pairwise(samples):
        rise = {
            name: now.models.get(model, {}).get(name, 0.0) - before.models.get(model, {}).get(name, 0.0)
            for name in (above, below)
        }
        found.append(factor * rise[above] / rise[below] if rise[below] > 0 else float("nan"))
    return found


def server(axes: Axes, seen: Seen) -> None:
    begun_s, _ = window(seen.phase, seen.records)
    cpu = cpu_over_time(seen.samples)
    looks = processes_over_time(seen.samples)
    memory = axes.twinx()
    memory.grid(False)
    axes.plot([at_s - begun_s for at_s, _ in cpu], [percent for _, percent in cpu], color="C0")
    memory.plot([at_s - begun_s for at_s, _ in looks], [look.rss_mb for _, look in looks], color="C3")
    axes.set(xlabel="seconds", ylim=(0, None))
    axes.set_ylabel("CPU, % of one core", color="C0")
    memory.set(ylim=(0, None))
    memory.set_ylabel("memory, MB", color="C3")


def line(axes: Axes, xs: Sequence[float], ys: Sequence[Sequence[float]], x_label: str) -> None:
    """Medians with their spread (10th to 90th percentile) in milliseconds, and the line through the medians."""
    medians = [float(np.median(values)) for values in ys]
    low = [median - float(np.percentile(values, 10)) for median, values in zip(medians, ys, strict=True)]
    high = [float(np.percentile(values, 90)) - median for median, values in zip(medians, ys, strict=True)]
    axes.errorbar(
        xs, medians, yerr=[low, high], fmt="o", capsize=3, color="C0", label="median, 10th to 90th percentile"
    )
    rise, height = slope(xs, medians, relative=True)
    axes.plot([0, max(xs)], [height, height + rise * max(xs)], "--", color="C3", label=f"{height:.0f} + {rise:.1f} · x")
    axes.set(xlabel=x_label, ylabel="ms", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="upper left", frameon=False)
