"""What goes into a stream and what comes out of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

from cutaway.contract.errors import InvalidFormat, Overloaded
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.limits import STREAM_LIMITS, STREAM_STATISTICS_FRAMES, UNTOUCHED, Tier
from cutaway.report import Notice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cutaway.contract.errors import CutawayError
    from cutaway.report import Report

FrameInput: TypeAlias = Union[bytes, "NDArray[np.uint8]"]
"""An encoded file (JPEG mostly), or an array: HWC uint8 [0, 255] with 3 channels in the stream's order."""


@dataclass(frozen=True)
class StreamFrame:
    """One frame that is done.

    Attributes:
        id: what `submit` returned.
        image: an array for an array, of the same shape; a JPEG's bytes for an encoded file.
        untouched: whether the image is what was submitted, because it could not be worked on; `error` or the report's
            warnings say why.
        error: why nobody worked on it, or None. A :class:`cutaway.contract.errors.InputError` is about this frame.
        report: the server's: people, milliseconds per stage, warnings. None where it did not answer.
        latency_ms: from `submit` until it was done, waiting included.

    `warnings` are the report's; where the server did not work on it, one with the code `UNTOUCHED` that says why.
    """

    id: int
    image: FrameInput = field(repr=False)
    untouched: bool
    error: CutawayError | None
    report: Report | None = field(repr=False)
    latency_ms: float

    @property
    def warnings(self) -> tuple[Notice, ...]:
        if self.report is not None:
            return self.report.warnings
        if self.error is None:
            return ()
        said = f"The frame came back as it was: {self.error}"
        return (Notice(UNTOUCHED, said, Tier.MEDIUM, {**self.error.details, "code": self.error.code}),)

    @property
    def overloaded(self) -> bool:
        """Whether it came back as it was because the server has too much to do, or too many streams."""
        return self.untouched and any(warning.details.get("code") == Overloaded.code for warning in self.warnings)


@dataclass(frozen=True)
class StreamStatistics:
    """What became of a stream's frames so far.

    Attributes:
        submitted: frames that were taken by `submit`.
        done: frames that came back, untouched ones included.
        dropped: frames that were late: a newer one came before they could be sent.
        skipped: frames that were done and that nobody took in time.
        untouched: frames that came back as they were.
        overloaded: those of them for which the server had no room: it serves too many streams already (OVERLOADED).
        fps: frames done per second, over the last `STREAM_STATISTICS_FRAMES`.
        latency_p50_ms, latency_p95_ms, latency_p99_ms: from `submit` until a frame was done, over the same.
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


@dataclass(frozen=True)
class Waiting:
    """A frame on its way: its number, what was submitted, and when (seconds of `time.perf_counter`)."""

    id: int
    image: FrameInput
    at: float


class Tally:
    """Counts frames, and remembers when the last ones were done."""

    def __init__(self) -> None:
        self.submitted = self.dropped = self.skipped = self.untouched = self.overloaded = self.done = 0
        self._last: deque[tuple[float, float]] = deque(maxlen=STREAM_STATISTICS_FRAMES)

    def count(self, frame: StreamFrame) -> None:
        self.done += 1
        self.untouched += frame.untouched
        self.overloaded += frame.overloaded
        self._last.append((time.perf_counter(), frame.latency_ms))

    def statistics(self) -> StreamStatistics:
        last = list(self._last)
        took_s = last[-1][0] - last[0][0] if len(last) > 1 else 0.0
        latencies: Sequence[float] = sorted(latency for _, latency in last)
        return StreamStatistics(
            submitted=self.submitted,
            done=self.done,
            dropped=self.dropped,
            skipped=self.skipped,
            untouched=self.untouched,
            overloaded=self.overloaded,
            fps=(len(last) - 1) / took_s if took_s > 0 else 0.0,
            latency_p50_ms=_percentile(latencies, 0.50),
            latency_p95_ms=_percentile(latencies, 0.95),
            latency_p99_ms=_percentile(latencies, 0.99),
        )


def taken(image: FrameInput) -> FrameInput:
    """A copy of what was submitted, checked as far as that is seen at once; the caller may use the array again.

    Raises:
        InputError: it is no frame that is taken.
    """
    if isinstance(image, bytes):
        check_picture(image, limits=STREAM_LIMITS)
        return image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        received = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InvalidFormat(
            f"A frame is an encoded file's bytes or a uint8 array (height, width, 3), not {received}.",
            details={"supported": [*STREAM_LIMITS.formats, "uint8 (height, width, 3)"], "received": received},
        )
    check_dimensions(PictureHeader("raw", image.shape[1], image.shape[0]), STREAM_LIMITS)
    return np.array(image, order="C", copy=True)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
