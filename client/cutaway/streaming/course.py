"""What a stream decides, for threads and asyncio alike; nothing here waits.

One frame is under way at a time: a second one would wait in the server behind the first, and be older by the time it
is worked on than one that is sent later. So the newest frame waits here, and takes the place of one that waits already.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.calls import Settings, checked_timeout, settings_of
from cutaway.contract.errors import CutawayError, InputError, ProcessingTimeout, RequestCancelled, ServerUnavailable
from cutaway.contract.limits import STREAM_REST_FIRST_S, STREAM_REST_MAX_S, STREAM_RESULTS_KEPT
from cutaway.contract.options import parse_stream_options, to_parameters
from cutaway.inputs import encode
from cutaway.report import parse_report
from cutaway.streaming.frames import FrameInput, StreamFrame, Tally, Waiting, taken
from cutaway.transports.base import InferRequest, InputTensor, SequencePart
from cutaway.wire import malformed

if TYPE_CHECKING:
    from cutaway.inputs import ImageInput
    from cutaway.report import Report
    from cutaway.transports.connection import Tls
    from cutaway.wire import Tensor

STREAM = "stream_pipeline"
END_TIMEOUT_S = 0.5
"""For telling the server of the end. It forgets the stream after a while anyway."""


class Course:
    """One stream: its frames, its place at the server, and what is done when that fails.

    Args:
        settings: of the connection.
        parameters: the options, checked, as they are sent with the first frame.
        picture: the background's file, or None.
    """

    def __init__(self, settings: Settings, parameters: Mapping[str, Any], picture: bytes | None) -> None:
        self.settings = settings
        self.tally = Tally()
        self.finished = False
        self._parameters = to_parameters(parameters)
        self._picture = picture
        self._waiting: Waiting | None = None
        self._done: deque[StreamFrame] = deque()
        self._id = 0
        # One id for good: a beginning under the same one takes the old place at the server, and no second one.
        self._sequence = 1 + secrets.randbelow(2**62)
        self._begun = False
        self._rests_until = 0.0
        self._rest_s = 0.0
        self._why: CutawayError = ServerUnavailable("The server was not asked yet.")

    # ------------------------------------------------------------------------------------------- what callers do

    def submit(self, image: FrameInput) -> int:
        """Let a frame wait, in the place of one that waits already.

        Raises:
            InputError: it is no frame that is taken.
            RuntimeError: the stream was finished or closed.
        """
        if self.finished:
            raise RuntimeError("the stream is finished: it takes no more frames")
        at = time.perf_counter()
        image = taken(image)
        self.tally.submitted += 1
        self.tally.dropped += self._waiting is not None
        self._id += 1
        self._waiting = Waiting(self._id, image, at)
        return self._id

    def take_done(self) -> StreamFrame | None:
        """The oldest frame that is done and was not taken."""
        return self._done.popleft() if self._done else None

    def take_latest(self) -> StreamFrame | None:
        """The newest one; those before it are skipped."""
        if not self._done:
            return None
        self.tally.skipped += len(self._done) - 1
        frame = self._done.pop()
        self._done.clear()
        return frame

    # ------------------------------------------------------------------------------------------ what drivers do

    def next(self) -> Waiting | None:
        """The frame whose turn it is."""
        waiting, self._waiting = self._waiting, None
        return waiting

    @property
    def idle(self) -> bool:
        """Whether no frame waits."""
        return self._waiting is None

    def keep(self, frame: StreamFrame) -> None:
        """Let a frame that is done be taken; beyond `STREAM_RESULTS_KEPT` the oldest one is skipped."""
        self.tally.count(frame)
        self._done.append(frame)
        if len(self._done) > STREAM_RESULTS_KEPT:
            self._done.popleft()
            self.tally.skipped += 1

    def serve(self, waiting: Waiting) -> Generator[InferRequest, Mapping[str, Tensor], StreamFrame]:
        """Have a frame worked on: yields what is to be asked, is sent the outputs, and returns the frame, untouched
        where the server fails."""
        if time.monotonic() < self._rests_until:
            return self._untouched(waiting, self._why)
        while True:
            begins = not self._begun
            try:
                outputs = yield self._request(waiting)
                frame = self._made(waiting, outputs)
            except (InputError, RequestCancelled) as error:
                return self._untouched(waiting, error)
            except CutawayError as error:
                self._begun = False
                # It may only have forgotten this stream, or have come back without knowing it.
                if begins or isinstance(error, ProcessingTimeout):
                    self._rest(error)
                    return self._untouched(waiting, error)
            else:
                self._rest_s = 0.0
                return frame

    def end(self) -> InferRequest | None:
        """What tells the server of the end; None where it knows of no stream."""
        if not self._begun:
            return None
        self._begun = False
        part = SequencePart(self._sequence, ends=True)
        return InferRequest(STREAM, b"", ("report",), inputs=(), sequence=part, timeout_s=END_TIMEOUT_S)

    def _request(self, waiting: Waiting) -> InferRequest:
        begins, self._begun = not self._begun, True
        raw = not isinstance(waiting.image, bytes)
        inputs = [InputTensor("frame" if raw else "file", waiting.image)]
        if begins and self._picture is not None:
            inputs.append(InputTensor("background", self._picture))
        return InferRequest(
            STREAM,
            b"",
            ("frame" if raw else "jpeg", "report"),
            parameters=self._parameters if begins else {},
            request_id=f"frame-{waiting.id}",
            timeout_s=self.settings.timeout_s,
            inputs=tuple(inputs),
            sequence=SequencePart(self._sequence, begins=begins),
        )

    def _made(self, waiting: Waiting, outputs: Mapping[str, Tensor]) -> StreamFrame:
        """
        Raises:
            InferenceError: the answer makes no sense.
        """
        files = outputs.get("report")
        if not isinstance(files, list) or len(files) != 1:
            raise malformed("it holds no report")
        report = parse_report(files[0])
        image: Any
        if isinstance(waiting.image, bytes):
            jpegs = outputs.get("jpeg")
            if not isinstance(jpegs, list) or len(jpegs) != 1:
                raise malformed("it holds no JPEG")
            image = jpegs[0]
        else:
            image = outputs.get("frame")
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != waiting.image.shape:
                raise malformed("its frame has another form than the one that was sent")
        untouched = report.raw.get("untouched") is True
        if untouched and isinstance(waiting.image, bytes):
            image = waiting.image
        return self._frame(waiting, image, untouched=untouched, report=report)

    def _untouched(self, waiting: Waiting, error: CutawayError) -> StreamFrame:
        return self._frame(waiting, waiting.image, untouched=True, error=error)

    def _frame(
        self,
        waiting: Waiting,
        image: FrameInput,
        *,
        untouched: bool,
        error: CutawayError | None = None,
        report: Report | None = None,
    ) -> StreamFrame:
        latency_ms = (time.perf_counter() - waiting.at) * 1000
        return StreamFrame(waiting.id, image, untouched, error, report, latency_ms)

    def _rest(self, error: CutawayError) -> None:
        self._why = error
        self._rest_s = min(max(2 * self._rest_s, STREAM_REST_FIRST_S), STREAM_REST_MAX_S)
        self._rests_until = time.monotonic() + self._rest_s


def course_of(
    url: str,
    *,
    background: ImageInput,
    min_confidence: float | None,
    smoothing: float | None,
    channels: str | None,
    quality: int | None,
    timeout_s: float,
    token: str | None,
    api_key: str | None,
    headers: Mapping[str, str] | None,
    tls: Tls | None,
) -> Course:
    """Check what a stream was told.

    Raises:
        InputError: an option, or the background's picture.
        ValueError: the URL is no address, or the timeout makes no sense.
        OSError: the background's file, or a certificate's, cannot be read.
    """
    settings = settings_of(
        url,
        timeout_s=checked_timeout(timeout_s),
        token=token,
        api_key=api_key,
        headers=headers,
        tls=tls,
        retry=None,
        fallback=(),
        cache=None,
        observers=(),
        verify=False,
        max_decompression_ratio=None,
        shared_memory=None,
    )
    is_words = isinstance(background, str) and background.startswith(("#", "blur:"))
    given = {
        "background": background if is_words else "picture",
        "min_confidence": min_confidence,
        "smoothing": smoothing,
        "channels": channels,
        "quality": quality,
    }
    parse_stream_options(given)
    return Course(settings, given, None if is_words else encode(background, verify=True).data)
