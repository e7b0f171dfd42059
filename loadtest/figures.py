"""The figures of a run, from its log and its samples. JSON values only, so that they can be kept and compared."""

from __future__ import annotations

import collections
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loadtest.driving import Phase, Seen
from loadtest.records import Record
from loadtest.scenarios import OVERLOADED, SERVED
from loadtest.watching import Processes, Sample

PERCENTILES = (50, 95, 99)
WINDOWS = 10
OUTSIDE = "queue and wire"
"""What is left of a request's time beside its stages: it waits in queues, travels, and is packed and unpacked."""


def figures(seen: Seen) -> dict[str, Any]:
    """All figures of a phase."""
    records = seen.records
    begun_s, ended_s = window(seen.phase, records)
    inside = [record for record in records if begun_s <= record.done_s <= ended_s]
    seconds = ended_s - begun_s
    served = [record for record in records if record.served]
    wrong = [record for record in records if not record.expected]
    return {
        "phase": asdict(seen.phase),
        "begun_s": begun_s,
        "seconds": seconds,
        "answers": len(records),
        "served": len(served),
        "expected_refusals": sum(record.expected and not record.served for record in records),
        "failures": len(wrong),
        "failure_share": len(wrong) / len(records),
        "throughput_per_s": sum(record.served for record in inside) / seconds,
        "answers_per_s": len(inside) / seconds,
        "offered_per_s": sum(begun_s <= record.intended_s <= ended_s for record in records) / seconds,
        "sent_mb_per_s": sum(record.sent_bytes for record in inside) / 1e6 / seconds,
        "answered_mb_per_s": sum(record.answered_bytes for record in inside) / 1e6 / seconds,
        "latency_ms": spread([record.latency_ms for record in served]),
        "refusal_ms": spread([record.latency_ms for record in records if record.code == OVERLOADED]),
        "late_ms": spread([record.late_ms for record in records]),
        "kinds": _by(records, lambda record: f"{record.kind} ({record.way})"),
        "errors": _errors(records),
        "stages_ms": stages(served),
        "models": models(seen.samples),
        "server": server(seen.samples),
    }


def window(phase: Phase, records: Sequence[Record]) -> tuple[float, float]:
    """From when to when requests were sent, Unix time. What is answered after that counts for times, not for rates."""
    begun_s = min(record.intended_s for record in records)
    last_s = max(record.done_s for record in records)
    if phase.requests or not phase.seconds:
        return begun_s, last_s
    return begun_s, begun_s + phase.seconds


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Count, mean, percentiles and largest; None where there is nothing."""
    if not values:
        return None
    percentiles = {f"p{number}": percentile(values, number) for number in PERCENTILES}
    return {"count": len(values), "mean": statistics.fmean(values), **percentiles, "max": max(values)}


def percentile(values: Sequence[float], number: float) -> float:
    """The smallest value that at least `number` percent do not exceed: one that was measured, never one in between."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * number / 100) - 1)]


def _by(records: Sequence[Record], key: Callable[[Record], str]) -> list[dict[str, Any]]:
    groups: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return [
        {
            "name": name,
            "answers": len(group),
            "served": sum(record.served for record in group),
            "failures": sum(not record.expected for record in group),
            "latency_ms": spread([record.latency_ms for record in group]),
        }
        for name, group in sorted(groups.items())
    ]


def _errors(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Answers other than pictures, and pictures where an error would have been right, by code."""
    groups: dict[tuple[str, bool], list[Record]] = collections.defaultdict(list)
    for record in records:
        if not record.served or not record.expected:
            groups[record.code or "served", record.expected].append(record)
    return [
        {
            "code": code,
            "expected": expected,
            "count": len(group),
            "latency_ms": spread([record.latency_ms for record in group]),
            "example": next((f"{record.kind}: {record.message}" for record in group if record.message), ""),
        }
        for (code, expected), group in sorted(groups.items())
    ]


def stages(served: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Milliseconds per stage of all pictures served, and what was spent outside of them."""
    columns: dict[str, list[float]] = collections.defaultdict(list)
    timed = [record for record in served if "total" in record.stages_ms]
    named = {stage: None for record in timed for stage in record.stages_ms if stage != "total"}
    for record in timed:
        for stage in named:
            columns[stage].append(record.stages_ms.get(stage, 0.0))
        columns[OUTSIDE].append(record.latency_ms - record.stages_ms["total"])
    return {stage: found for stage, values in columns.items() if (found := spread(values)) is not None}


def models(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """By model: requests, mean batch, and mean milliseconds in the queue and in the model, from Triton's counters."""
    with_metrics = [sample for sample in samples if sample.models]
    if len(with_metrics) < 2:
        return {}
    first, last = with_metrics[0].models, with_metrics[-1].models
    found = {}
    for model, counters in sorted(last.items()):
        grown = {name: value - first.get(model, {}).get(name, 0.0) for name, value in counters.items()}
        requests, runs = grown.get("request_success", 0.0), grown.get("exec_count", 0.0)
        if requests > 0 and runs > 0:
            found[model] = {
                "requests": requests,
                "mean_batch": grown.get("count", 0.0) / runs,
                "queue_ms": grown.get("queue_duration_us", 0.0) / requests / 1000,
                "compute_ms": grown.get("compute_infer_duration_us", 0.0) / requests / 1000,
                "most_pending": max(
                    sample.models.get(model, {}).get("pending_request_count", 0.0) for sample in with_metrics
                ),
            }
    return found


def server(samples: Sequence[Sample]) -> dict[str, float] | None:
    """What the server's processes took; None for a server elsewhere."""
    looks = processes_over_time(samples)
    if len(looks) < 2:
        return None
    (first_s, first), (last_s, last) = looks[0], looks[-1]
    return {
        "cpu_percent": 100 * (last.cpu_s - first.cpu_s) / (last_s - first_s),
        "rss_mb_first": first.rss_mb,
        "rss_mb_most": max(look.rss_mb for _, look in looks),
        "rss_mb_last": last.rss_mb,
        "threads_first": first.threads,
        "threads_last": last.threads,
        "fds_first": first.fds,
        "fds_last": last.fds,
        "shm_mb_first": first.shm_mb,
        "shm_mb_last": last.shm_mb,
    }


def processes_over_time(samples: Sequence[Sample]) -> list[tuple[float, Processes]]:
    return [(sample.at_s, sample.processes) for sample in samples if sample.processes is not None]


def cpu_over_time(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Unix time and percent of one core between one look and the next."""
    looks = processes_over_time(samples)
    return [
        (now_s, 100 * (now.cpu_s - before.cpu_s) / (now_s - before_s))
        for (before_s, before), (now_s, now) in itertools.pairwise(looks)
        if now_s > before_s
    ]


def per_second(records: Sequence[Record], begun_s: float) -> dict[str, list[int]]:
    """Answers in each second by outcome: served, refused as overloaded, otherwise refused as expected, wrong."""
    last = max(int(record.done_s - begun_s) for record in records)
    counts = {name: [0] * (last + 1) for name in ("served", "overloaded", "refused as expected", "wrong")}
    for record in records:
        counts[outcome(record)][max(0, int(record.done_s - begun_s))] += 1
    return counts


def outcome(record: Record) -> str:
    if record.code == OVERLOADED:
        return "overloaded"
    if not record.expected:
        return "wrong"
    return "served" if record.code == SERVED else "refused as expected"


def slope(xs: Sequence[float], ys: Sequence[float], *, relative: bool = False) -> tuple[float, float]:
    """The line through points by least squares: its rise per unit, and its height at 0. `relative`: of the shares by
    which points are off, not of the distances, so that small values count as much as large ones."""
    rise, height = np.polyfit(xs, ys, 1, w=1 / np.asarray(ys) if relative else None)
    return float(rise), float(height)


@dataclass(frozen=True)
class Rise:
    """How memory grows.

    Attributes:
        mb: added and kept in 1,000 answers, 2^20 bytes.
        error_mb: its standard error.
        floors_mb: what there was at least, in one stretch of the time after the other.
    """

    mb: float
    error_mb: float
    floors_mb: Sequence[float]


def memory_rise(seen: Seen, skip_share: float, which: Callable[[str], bool] = lambda _: True) -> Rise | None:
    """How much of the server's own memory is added and kept in 1,000 answers; None where there are too few looks.

    What a large picture needs for a moment comes and goes, hundreds of megabytes in one process or the other, and would
    hide a leak. So the time is cut into windows, each process is taken at its least in each, and a line is laid through
    the sums (least squares).

    Args:
        seen: the phase.
        skip_share: this share of the answers is left out at the start.
        which: of the processes, by their names.
    """
    done_s = np.sort([record.done_s for record in seen.records])
    kept = _after_warm_up(seen, skip_share)
    size = max(1, len(kept) // WINDOWS)
    windows = [kept[start : start + size] for start in range(0, len(kept), size)][:WINDOWS]
    if len(windows) < 3:
        return None
    middles = [statistics.fmean(float(np.searchsorted(done_s, at_s)) for at_s, _ in window) for window in windows]
    floors = [_least((look for _, look in window), which) for window in windows]
    rise, height = slope(middles, floors)
    xs, off = np.asarray(middles), np.asarray(floors) - (height + rise * np.asarray(middles))
    error = math.sqrt(float((off**2).sum()) / (len(xs) - 2) / float(((xs - xs.mean()) ** 2).sum()))
    return Rise(1000 * rise, 1000 * error, floors)


def levels(seen: Seen, skip_share: float) -> tuple[dict[str, float], dict[str, float]] | None:
    """The most threads, open files and shared memory (MB) in the first and in the second half of the time, without a
    share of the answers at the start; None where there are too few looks."""
    kept = [look for _, look in _after_warm_up(seen, skip_share)]
    if len(kept) < 2:
        return None
    first, second = (
        {
            "threads": max(look.threads for look in half),
            "fds": max(look.fds for look in half),
            "shm_mb": max(look.shm_mb for look in half),
        }
        for half in (kept[: len(kept) // 2], kept[len(kept) // 2 :])
    )
    return first, second


def _after_warm_up(seen: Seen, skip_share: float) -> list[tuple[float, Processes]]:
    """When (Unix time) and what was seen of the processes, from so large a share of the answers on to the last one."""
    done_s = np.sort([record.done_s for record in seen.records])
    first_s = done_s[min(len(done_s) - 1, math.ceil(skip_share * len(done_s)))]
    return [(at_s, look) for at_s, look in processes_over_time(seen.samples) if first_s <= at_s < done_s[-1]]


def _least(looks: Iterable[Processes], which: Callable[[str], bool]) -> float:
    """The sum of the least that each process had in one of these looks."""
    least: dict[str, float] = {}
    for look in looks:
        for name, mb in (look.parts_mb or {"all": look.rss_mb}).items():
            if which(name):
                least[name] = min(mb, least.get(name, mb))
    return sum(least.values())
