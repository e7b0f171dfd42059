"""What the pipeline adds to Triton's metrics: outcomes by code, people, stages, warnings, and pictures in flight.

Triton itself counts a refused picture as a success. The bundled Triton knows no histograms from Python, so each bucket,
sum and count is a counter by the name that Prometheus gives it. An update is a message to Triton's process, and a
picture makes over a hundred: so they are added up here and sent once a second by a thread of their own.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

SEND_EVERY_S = 1.0

STAGE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.07, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""With the promised p50, p95 and p99 of matting on a GPU (70, 80 and 100 ms) among the bounds."""
PEOPLE_BUCKETS = (0, 1, 2, 3, 5, 10, 20, 50)
STAGES = ("decode", "detect", "matte", "refine", "encode", "total")
CODES = ("OK", "INFERENCE_ERROR", "PROCESSING_TIMEOUT", "GPU_MEMORY_EXHAUSTED", "OVERLOADED", "UNAVAILABLE")
"""Outcomes for which callers are not to blame."""

Labels = tuple[tuple[str, str], ...]

FAMILIES = {
    "cutaway_requests": "Pictures by outcome: OK, or the error's code.",
    "cutaway_warnings": "Warnings in answers, by code.",
    "cutaway_stage_seconds": "Seconds of each stage of the pipeline, and of all together (total).",
    "cutaway_people": "People found in a picture and chosen by the request.",
    "cutaway_pictures_in_flight": "Pictures being worked on, by instance.",
}


class Metrics:
    """Counts what requests come to, and hands it to Triton; thread-safe."""

    def __init__(self, instance: str) -> None:
        """
        Args:
            instance: the name of this model instance, the label of its gauge.
        """
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, Labels], float] = defaultdict(float)
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], Any] = {}
        self._in_flight = 0
        self._gauge = self._family("cutaway_pictures_in_flight", pb_utils.MetricFamily.GAUGE).Metric(
            labels={"instance": instance}
        )
        # At 0, since Prometheus sees no increase where a counter appears with 1: the first pictures would be lost.
        for code in CODES:
            self._counts["cutaway_requests_total", (("code", code),)] += 0
        for stage in STAGES:
            self._observe("cutaway_stage_seconds", 0.0, STAGE_BUCKETS_S, ("stage", stage), times=0)
        self._observe("cutaway_people", 0, PEOPLE_BUCKETS, times=0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name="metrics", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """A picture is being worked on."""
        with self._lock:
            self._in_flight += 1

    def end(self, code: str, report: Mapping[str, Any] | None = None) -> None:
        """It is done: "OK" or the code of its error, and the report of its answer."""
        with self._lock:
            self._in_flight -= 1
            self._counts["cutaway_requests_total", (("code", code),)] += 1
            if report is None:
                return
            for warning in report["warnings"]:
                self._counts["cutaway_warnings_total", (("code", warning["code"]),)] += 1
            for stage, spent_ms in report["milliseconds"].items():
                self._observe("cutaway_stage_seconds", spent_ms / 1000, STAGE_BUCKETS_S, ("stage", stage))
            self._observe("cutaway_people", len(report["people"]), PEOPLE_BUCKETS)

    def close(self) -> None:
        """Send what is left."""
        self._stop.set()
        self._thread.join(timeout=SEND_EVERY_S)

    def _observe(
        self, name: str, value: float, buckets: tuple[float, ...], *labels: tuple[str, str], times: int = 1
    ) -> None:
        for bound in buckets:
            # Bounds that nothing fell under yet are there too, as a histogram's have to be.
            self._counts[f"{name}_bucket", (*labels, ("le", f"{bound:g}"))] += times * (value <= bound)
        self._counts[f"{name}_bucket", (*labels, ("le", "+Inf"))] += times
        self._counts[f"{name}_sum", labels] += times * value
        self._counts[f"{name}_count", labels] += times

    def _send_all(self) -> None:
        sent_in_flight = -1
        stopped = False
        while not stopped:
            stopped = self._stop.wait(SEND_EVERY_S)
            with self._lock:
                counts, self._counts = self._counts, defaultdict(float)
                in_flight = self._in_flight
            for (name, labels), value in counts.items():
                metric = self._metric(name, labels)
                if value:
                    metric.increment(value)
            if in_flight != sent_in_flight:
                self._gauge.set(in_flight)
                sent_in_flight = in_flight

    def _metric(self, name: str, labels: Labels) -> Any:
        if (name, labels) not in self._metrics:
            family = self._family(name, pb_utils.MetricFamily.COUNTER)
            self._metrics[name, labels] = family.Metric(labels=dict(labels))
        return self._metrics[name, labels]

    def _family(self, name: str, kind: Any) -> Any:
        if name not in self._families:
            about = next(text for prefix, text in FAMILIES.items() if name.startswith(prefix))
            self._families[name] = pb_utils.MetricFamily(name=name, description=about, kind=kind)
        return self._families[name]
