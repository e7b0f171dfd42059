"""Statistics of load that nobody sent, with figures that can be reckoned by hand."""

from __future__ import annotations

import collections
import importlib.util
from collections.abc import Sequence
from dataclasses import replace

import pytest

from loadtest.figures import LATE, SENDER, STAGE, Row, Seen
from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.watching import Processes, Sample

BEGUN_S = 1_800_000_000

needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None,
    reason="Locust is not installed: pip install -r requirements/loadtest.txt",
)


def phase(**changes: object) -> Scenario:
    return replace(SCENARIOS["single"], users=2, seconds=10.0, **changes)  # type: ignore[arg-type]


def row(
    times_ms: Sequence[float], seconds: Sequence[int], name: str = "one person", method: str = "gRPC", failures: int = 0
) -> Row:
    """Requests that ended so many seconds after the beginning, as Locust's JSON has them: keys are text."""
    return {
        "name": name,
        "method": method,
        "num_requests": len(times_ms),
        "num_failures": failures,
        "response_times": {str(float(ms)): count for ms, count in collections.Counter(times_ms).items()},
        "num_reqs_per_sec": {str(BEGUN_S + second): count for second, count in collections.Counter(seconds).items()},
    }


def sent(seconds: Sequence[int], late_ms: float = 0.0) -> Row:
    return row([late_ms] * len(seconds), seconds, LATE, SENDER)


def stage(name: str, times_ms: Sequence[float]) -> Row:
    return row(times_ms, [0] * len(times_ms), name, STAGE)


def sample(after_s: float, runs: float, *, rss_mb: float = 500.0, cpu_s: float = 0.0) -> Sample:
    """A look: batches of two in the matting network, 3 ms in the queue for each of its requests."""
    counters = {
        "request_success": 2 * runs,
        "count": 2 * runs,
        "exec_count": runs,
        "queue_duration_us": 2 * runs * 3000,
        "compute_infer_duration_us": 2 * runs * 90_000,
        "pending_request_count": runs % 5,
    }
    return Sample(BEGUN_S + after_s, {"birefnet_trt": counters}, Processes(cpu_s, rss_mb, 40, 90, 64.0))


def seen(rows: list[Row], samples: list[Sample] | None = None, **changes: object) -> Seen:
    return Seen(phase(**changes), rows, samples or [])
