"""What a run has to reach, as options for continuous integration: one table."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Figure = Callable[[dict[str, Any]], float | None]
"""Finds the figure in a run; None where the run has none."""


class Threshold(NamedTuple):
    """One option; its limit is an upper one where its name begins with "max"."""

    option: str
    help: str
    figure: Figure


@dataclass(frozen=True)
class Verdict:
    """A threshold that was asked for, and what the run reached; a figure that is missing is not reached."""

    option: str
    limit: float
    figure: float | None

    @property
    def kept(self) -> bool:
        if self.figure is None:
            return False
        return self.figure <= self.limit if self.option.startswith("max") else self.figure >= self.limit

    @property
    def text(self) -> str:
        reached = "no such figure" if self.figure is None else f"{self.figure:.4g}"
        return f"--{self.option} {self.limit:g}: {reached}: {'kept' if self.kept else 'MISSED'}"


def _percentile(name: str, part: str = "latency_ms") -> Figure:
    return lambda run: run["result"][part][name] if run["result"][part] else None


def _peak_share(run: dict[str, Any]) -> float | None:
    peak = run["phases"][0]["throughput_per_s"]
    return run["result"]["throughput_per_s"] / peak if len(run["phases"]) > 1 and peak else None


def _server(name: str, minus: str = "") -> Figure:
    return lambda run: (found := run["result"]["server"]) and found[name] - found.get(minus, 0)


THRESHOLDS = (
    Threshold("max-p50-ms", "median time of a picture", _percentile("p50")),
    Threshold("max-p95-ms", "95th percentile", _percentile("p95")),
    Threshold("max-p99-ms", "99th percentile", _percentile("p99")),
    Threshold("max-refusal-p99-ms", "99th percentile of refusals (OVERLOADED)", _percentile("p99", "refusal_ms")),
    Threshold("min-throughput", "pictures per second", lambda run: run["result"]["throughput_per_s"]),
    Threshold("max-error-rate", "share of wrong answers, 0 to 1", lambda run: run["result"]["failure_share"]),
    Threshold("min-peak-share", "overload: throughput as a share of the peak, 0 to 1", _peak_share),
    Threshold("max-rss-growth-mb", "server memory, last against first", _server("rss_mb_last", "rss_mb_first")),
    Threshold("max-rss-mb-per-minute", "server memory, in the last quarter", _server("rss_mb_per_minute")),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("thresholds (exit status 1 where one is missed)")
    for threshold in THRESHOLDS:
        group.add_argument(f"--{threshold.option}", type=float, metavar="X", help=threshold.help)


def judge(run: dict[str, Any], options: argparse.Namespace) -> list[Verdict]:
    """The verdicts on those thresholds that were asked for."""
    limits = ((each, getattr(options, each.option.replace("-", "_"))) for each in THRESHOLDS)
    return [Verdict(each.option, limit, each.figure(run)) for each, limit in limits if limit is not None]
