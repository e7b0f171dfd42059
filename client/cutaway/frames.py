"""Frames into and out of a stream, and their statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cutaway.contract.errors import CutawayError, InvalidFormat, Overloaded
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.limits import STREAM_LIMITS, UNTOUCHED, Tier
from cutaway.report import Notice, Report

FrameInput: TypeAlias = bytes | NDArray[np.uint8]
"""An encoded file (JPEG mostly), or an array: HWC uint8 [0, 255] with 3 channels in the stream's order."""


@dataclass(frozen=True)
class StreamFrame:
    """One frame that is done.

    Attributes:
        id: what `submit` returned.
        image: an array for an array, of the same shape; a JPEG's bytes for an encoded file.
        untouched: whether the image is the submitted one; the reason is `error` or a warning of the report.
        error: the error of a frame without an answer, or None. An InputError is about this frame alone.
        report: the server's people, milliseconds per stage and warnings; None without an answer.
        latency_ms: from `submit` until it was done.
    """

    id: int
    image: FrameInput = field(repr=False)
    untouched: bool
    error: CutawayError | None = None
    report: Report | None = field(default=None, repr=False)
    latency_ms: float = 0.0

    @property
    def warnings(self) -> tuple[Notice, ...]:
        """The report's; without an answer, one with the code `UNTOUCHED` and the error."""
        if self.report is not None or self.error is None:
            return self.report.warnings if self.report else ()
        message = f"The frame came back as it was: {self.error}"
        return (Notice(UNTOUCHED, message, Tier.MEDIUM, {**self.error.details, "code": self.error.code}),)

    @property
    def overloaded(self) -> bool:
        """Whether it is untouched because the server shed it: too much load, or too many streams."""
        return self.untouched and any(warning.details.get("code") == Overloaded.code for warning in self.warnings)


@dataclass(frozen=True)
class StreamStatistics:
    """Counts of a stream's frames, and rates over the last `STREAM_STATISTICS_FRAMES`.

    Attributes:
        submitted, done: frames that `submit` took, and that came back.
        dropped, skipped: frames that a newer one replaced before they were sent, and that were not taken in time.
        untouched, overloaded: frames that came back as they were, and those of them that the server shed.
        fps: frames done per second.
        latency_p50_ms, latency_p95_ms, latency_p99_ms: percentiles from `submit` until a frame was done.
    """

    submitted: int = 0
    done: int = 0
    dropped: int = 0
    skipped: int = 0
    untouched: int = 0
    overloaded: int = 0
    fps: float = 0.0
    latency_p50_ms: float = 0.0
    latency_p95_ms: float = 0.0
    latency_p99_ms: float = 0.0

    @classmethod
    def of(cls, counts: Counter[str], last: Sequence[tuple[float, float]]) -> StreamStatistics:
        """From counts by name, and each of the last frames' time (s) and latency (ms)."""
        if not last:
            return cls(**counts)
        took_s = last[-1][0] - last[0][0]
        p50, p95, p99 = np.percentile([latency for _, latency in last], (50, 95, 99), method="higher").tolist()
        fps = (len(last) - 1) / took_s if took_s > 0 else 0.0
        return cls(**counts, fps=fps, latency_p50_ms=p50, latency_p95_ms=p95, latency_p99_ms=p99)


def checked(frame: FrameInput) -> FrameInput:
    """A frame within `STREAM_LIMITS`, else an InputError; an array is copied, since a camera's library reuses it."""
    if isinstance(frame, bytes):
        check_picture(frame, limits=STREAM_LIMITS)
        return frame
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        received = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InvalidFormat(
            f"A frame is an encoded file's bytes or a uint8 array (height, width, 3), not {received}.",
            details={"supported": [*STREAM_LIMITS.formats, "uint8 (height, width, 3)"], "received": received},
        )
    check_dimensions(PictureHeader("raw", frame.shape[1], frame.shape[0]), STREAM_LIMITS)
    return np.array(frame, order="C", copy=True)
