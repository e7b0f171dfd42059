"""The figures of a phase, from Locust's statistics and from samples of the server. JSON values only."""

from __future__ import annotations

import collections
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from loadtest.scenarios import OVERLOADED, Scenario
from loadtest.watching import Processes, Sample

Row = dict[str, Any]
"""A row of Locust's statistics, as its `--json-file` has it."""

PERCENTILES = (50, 95, 99)
WINDOWS = 10
STAGE = "stage"
"""The method of rows with milliseconds of the server's stages."""
OUTSIDE = "queue and wire"
"""What is left of a request's time beside its stages: it waits in queues, travels, and is packed and unpacked."""
SENDER, LATE = "sender", "late"
"""The row of how much later than intended requests were sent; it counts them in the seconds in which they were."""
CODE = " → "
"""Between a request's kind and the error code that came back."""


@dataclass(frozen=True)
class Seen:
    """What came of a phase: Locust's rows, and looks at the server."""

    phase: Scenario
    rows: list[Row]
    samples: list[Sample] = field(default_factory=list)

    @property
    def answers(self) -> list[Row]:
        return [row for row in self.rows if row["method"] not in (STAGE, SENDER)]


def figures(seen: Seen) -> dict[str, Any]:
    """All figures of a phase."""
    served = [row for row in seen.answers if not code_of(row)]
    refused = [row for row in seen.answers if code_of(row)]
    late = [row for row in seen.rows if row["method"] == SENDER]
    answers, failures = (sum(row[name] for row in seen.answers) for name in ("num_requests", "num_failures"))
    begun_s, ended_s = window(seen)
    seconds = max(1, ended_s - begun_s)
    return {
        "phase": asdict(seen.phase),
        "seconds": seconds,
        "sent": sum(row["num_requests"] for row in late),
        "answers": answers,
        "served": sum(row["num_requests"] for row in served),
        "expected_refusals": sum(row["num_requests"] - row["num_failures"] for row in refused),
        "failures": failures,
        "failure_share": failures / answers,
        "throughput_per_s": _inside(served, begun_s, ended_s) / seconds,
        "answers_per_s": _inside(seen.answers, begun_s, ended_s) / seconds,
        "sent_per_s": _inside(late, begun_s, ended_s) / seconds,
        "latency_ms": spread(served),
        "refusal_ms": spread([row for row in refused if code_of(row) == OVERLOADED]),
        "late_ms": spread(late),
        "codes": _codes(refused),
        "stages_ms": {row["name"]: spread([row]) for row in seen.rows if row["method"] == STAGE},
        "models": models(seen.samples),
        "server": server(seen.samples),
    }


def code_of(row: Row) -> str:
    """The error code that a row is of; "" for pictures."""
    return str(row["name"]).partition(CODE)[2]


def window(seen: Seen) -> tuple[int, int]:
    """The first and last second, Unix time, in which requests were sent. What is answered later counts for times and
    not for rates."""
    seconds = [int(second) for row in seen.rows if row["method"] == SENDER for second in row["num_reqs_per_sec"]]
    return min(seconds), max(seconds)


def _inside(rows: Iterable[Row], begun_s: int, ended_s: int) -> int:
    """Without the first second: it is seldom whole, and begins before the first answer."""
    return sum(
        count for row in rows for second, count in row["num_reqs_per_sec"].items() if begun_s < int(second) <= ended_s
    )


def spread(rows: Iterable[Row]) -> dict[str, float] | None:
    """Count, mean, percentiles (nearest rank) and largest of all times in rows, ms; None where there is nothing."""
    times: collections.Counter[float] = collections.Counter()
    for row in rows:
        for ms, count in row["response_times"].items():
            times[float(ms)] += count
    total = times.total()
    if not total:
        return None
    ordered = sorted(times)
    reached = list(itertools.accumulate(times[ms] for ms in ordered))
    percentiles = {
        f"p{number}": next(ms for ms, count in zip(ordered, reached, strict=True) if count >= total * number / 100)
        for number in PERCENTILES
    }
    return {"count": total, "mean": sum(ms * times[ms] for ms in times) / total, **percentiles, "max": ordered[-1]}


def _codes(refused: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Answers by error code, and how many of them were wrong."""
    codes: dict[str, dict[str, int]] = {}
    for row in refused:
        found = codes.setdefault(code_of(row), {"answers": 0, "wrong": 0})
        found["answers"] += row["num_requests"]
        found["wrong"] += row["num_failures"]
    return dict(sorted(codes.items()))


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
    # A queue takes its full memory only when it was emptied and filled a few times; then nothing may grow.
    late = looks[min(-2, -len(looks) // 4) :]
    names = ("rss_mb", "threads", "fds", "shm_mb")
    ends = {
        f"{name}_{when}": getattr(look, name) for name in names for when, look in (("first", first), ("last", last))
    }
    return {
        "cpu_percent": 100 * (last.cpu_s - first.cpu_s) / (last_s - first_s),
        "rss_mb_most": max(look.rss_mb for _, look in looks),
        "rss_mb_per_minute": 60 * slope([at_s for at_s, _ in late], [look.rss_mb for _, look in late])[0],
        **ends,
    }


def processes_over_time(samples: Sequence[Sample]) -> list[tuple[float, Processes]]:
    """Unix time and what was seen."""
    return [(sample.at_s, sample.processes) for sample in samples if sample.processes is not None]


def slope(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """The line through points by least squares: its rise per unit, and its height at 0."""
    rise, height = np.polyfit(xs, ys, 1)
    return float(rise), float(height)


@dataclass(frozen=True)
class Rise:
    """How memory grows (2^20 bytes): in 1,000 answers, the standard error of that, and what there was at least in one
    stretch of the time after the other."""

    mb: float
    error_mb: float
    floors_mb: Sequence[float]


def memory_rise(seen: Seen, skip_share: float, which: Callable[[str], bool] = lambda _: True) -> Rise | None:
    """How much of the server's own memory is added and kept in 1,000 answers; None where there are too few looks.

    What a large picture needs for a moment comes and goes, hundreds of megabytes in one process or the other, and would
    hide a leak. So the time is cut into windows, each process is taken at its least in each, and a line is laid through
    the sums (least squares).
    A share of the answers is left out at the start; `which` chooses processes by their names.
    """
    kept = _after_warm_up(seen, skip_share)
    size = max(1, len(kept) // WINDOWS)
    windows = [kept[start : start + size] for start in range(0, len(kept), size)][:WINDOWS]
    if len(windows) < 3:
        return None
    middles = [statistics.fmean(answers for answers, _ in window) for window in windows]
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
        {name: max(getattr(look, name) for look in half) for name in ("threads", "fds", "shm_mb")}
        for half in (kept[: len(kept) // 2], kept[len(kept) // 2 :])
    )
    return first, second


def _after_warm_up(seen: Seen, skip_share: float) -> list[tuple[int, Processes]]:
    """How many answers there were and what was seen of the processes, from so large a share of the answers on to the
    second of the last one."""
    per_second: collections.Counter[int] = collections.Counter()
    for row in seen.answers:
        per_second.update({int(second): count for second, count in row["num_reqs_per_sec"].items()})
    total, last_s = per_second.total(), max(per_second)
    looks = [
        (sum(count for second, count in per_second.items() if second < int(at_s)), look)
        for at_s, look in processes_over_time(seen.samples)
        if at_s < last_s + 1
    ]
    return [(answers, look) for answers, look in looks if answers >= skip_share * total]


def _least(looks: Iterable[Processes], which: Callable[[str], bool]) -> float:
    """The sum of the least that each process had in one of these looks."""
    least: dict[str, float] = {}
    for look in looks:
        for name, mb in (look.parts_mb or {"all": look.rss_mb}).items():
            if which(name):
                least[name] = min(mb, least.get(name, mb))
    return sum(least.values())
