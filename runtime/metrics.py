"""What the supervision has seen, for Prometheus: canaries by outcome, and what was started anew.

The supervisor listens on no port. It writes a file in Prometheus's text form, which the gate adds to its own metrics.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, write_to_textfile

from runtime.compose import STREAM
from runtime.health import DETECTION, MATTING, STREAMS, Answer, HealthStatus

TRITON, GATE = "triton", "gate"
"""What can be started anew beside the models, which have their own names."""


class Metrics:
    """Counts, and writes the file after each change.

    Args:
        path: the file.
        models: those of the server.
    """

    def __init__(self, path: Path, models: Collection[str]) -> None:
        self._path, self._registry = path, CollectorRegistry()
        about = "Rounds of canaries, by the part of the server and the worst answer of the round."
        self._canaries = Counter("cutaway_canaries", about, ("part", "outcome"), registry=self._registry)
        about = "What was started anew, or tried to be: Triton, the gate, or a single model."
        self._restarts = Counter("cutaway_restarts", about, ("part",), registry=self._registry)
        # All at 0, since Prometheus sees no increase where a counter appears with 1.
        for part in (DETECTION, MATTING, *([STREAMS] if STREAM in models else ())):
            for status in HealthStatus:
                self._canaries.labels(part, status.name.lower())
        for part in (TRITON, GATE, *models):
            self._restarts.labels(part)
        self._write()

    def count_round(self, answers: Mapping[str, Answer]) -> None:
        """Count a round of canaries: the worst answer of each part."""
        for part, answer in answers.items():
            self._canaries.labels(part, answer.status.name.lower()).inc()
        self._write()

    def count_restart(self, part: str) -> None:
        self._restarts.labels(part).inc()
        self._write()

    def _write(self) -> None:
        # A full disk does not end the supervision. Canaries seem to have stopped then, which is an alert.
        with contextlib.suppress(OSError):
            write_to_textfile(str(self._path), self._registry)
