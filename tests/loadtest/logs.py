"""Logs of load that nobody sent, with figures that can be reckoned by hand."""

from __future__ import annotations

import importlib.util

import pytest

from loadtest.driving import Phase, Seen
from loadtest.records import Record
from loadtest.watching import Processes, Sample

BEGUN_S = 1_800_000_000.0

needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None,
    reason="Locust is not installed: pip install -r requirements/loadtest.txt",
)


def phase(**changes: object) -> Phase:
    values: dict[str, object] = {
        "name": "single",
        "scenario": "single",
        "loop": "closed",
        "users": 2,
        "rate": 1.0,
        "seconds": 10.0,
    }
    return Phase(**values | changes)  # type: ignore[arg-type]


def record(
    intended_s: float, latency_ms: float, code: str = "", *, late_ms: float = 0.0, expected: bool = True
) -> Record:
    """A request that was to be sent so many seconds after the beginning."""
    return Record(
        kind="one person",
        way="gRPC",
        code=code,
        expected=expected,
        intended_s=BEGUN_S + intended_s,
        sent_s=BEGUN_S + intended_s + late_ms / 1000,
        done_s=BEGUN_S + intended_s + latency_ms / 1000,
        sent_bytes=200_000,
        answered_bytes=0 if code else 500_000,
        stages_ms={}
        if code
        else {"decode": 5.0, "detect": 30.0, "matte": 100.0, "refine": 10.0, "encode": 5.0, "total": 150.0},
        message="" if expected else "said what it should not",
    )


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


def seen(records: list[Record], samples: list[Sample] | None = None, **changes: object) -> Seen:
    return Seen(phase(**changes), records, samples or [])
