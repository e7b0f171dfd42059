"""A stream for threads: frames in without waiting, frames out in their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from cutaway.cancel import Cancel
from cutaway.contract.errors import CutawayError
from cutaway.contract.limits import DEFAULT_URL, STREAM_OPTIONS, STREAM_TIMEOUT_S
from cutaway.resilience import Deadline, drive
from cutaway.streaming.course import course_of

if TYPE_CHECKING:
    from typing import Self

    from cutaway.inputs import ImageInput
    from cutaway.streaming.course import Course
    from cutaway.streaming.frames import FrameInput, StreamFrame, StreamStatistics, Waiting
    from cutaway.transports.base import InferRequest
    from cutaway.transports.connection import Tls
    from cutaway.wire import Tensor


class Stream:
    """Puts the people of a video before another background, frame by frame, with as little delay as there can be.

        with Stream("grpc://localhost:8001", background="#00FF00", channels="bgr") as stream:
            while True:
                stream.submit(camera.read()[1])
                done = stream.latest()
                if done is not None:
                    show(done.image)

    `submit` never waits: where frames come faster than the server is, the newest one is sent and those before it are
    dropped and counted. Where the server fails, frames come back untouched and say so, and it is asked again after a
    short rest. Methods may be called from any thread. For people alone, without mattes: edges are softer and coarser
    than those of :meth:`cutaway.Client.cut`.

    Args:
        url: ``grpc://host:8001`` or ``http://host:8000``; ``grpcs://`` and ``https://`` with TLS.
        background: a colour "#RRGGBB", "blur:<px>" for the blurred frame, or a picture as :meth:`cutaway.Client.cut`
            takes it, which is sent once.
        min_confidence, smoothing, channels, quality: see :data:`cutaway.contract.limits.STREAM_OPTIONS`.
        timeout_s: seconds after which a frame comes back untouched.
        token, api_key, headers, tls: as those of :class:`cutaway.Client`.

    Raises:
        InputError: an option is out of range, or the background is no picture that is taken.
        ValueError: the URL is no address.
        OSError: the background's file cannot be read.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        background: ImageInput = str(STREAM_OPTIONS["background"].default),
        min_confidence: float | None = None,
        smoothing: float | None = None,
        channels: Literal["rgb", "bgr"] | None = None,
        quality: int | None = None,
        timeout_s: float = STREAM_TIMEOUT_S,
        token: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._course: Course = course_of(
            url,
            background=background,
            min_confidence=min_confidence,
            smoothing=smoothing,
            channels=channels,
            quality=quality,
            timeout_s=timeout_s,
            token=token,
            api_key=api_key,
            headers=headers,
            tls=tls,
        )
        settings = self._course.settings
        self._transport = settings.open_transport(settings.connections[0])
        self._cancel = Cancel()
        self._changed = threading.Condition()
        self._busy = False
        self._worker = threading.Thread(target=self._work, name="cutaway-stream", daemon=True)
        self._worker.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, frame: FrameInput) -> int:
        """Hand over a frame, and return its number, from 1 upwards. Does not wait.

        Args:
            frame: HWC uint8 [0, 255] with 3 channels, which is copied, or an encoded file's bytes, such as a JPEG.

        Raises:
            InputError: it is no frame that is taken.
            RuntimeError: the stream was finished or closed.
        """
        with self._changed:
            number = self._course.submit(frame)
            self._changed.notify_all()
        return number

    def latest(self, timeout_s: float = 0.0) -> StreamFrame | None:
        """The newest frame that is done and was not taken yet; older ones are skipped.

        Args:
            timeout_s: seconds to wait for one.

        Returns:
            None where there is none by then.
        """
        deadline = Deadline(timeout_s) if timeout_s > 0 else None
        with self._changed:
            while (frame := self._course.take_latest()) is None:
                if deadline is None or self._over or not self._changed.wait(deadline.left_s):
                    return None
            return frame

    def __iter__(self) -> Iterator[StreamFrame]:
        """Frames that are done, in their order, until the stream is finished and all of them are taken."""
        while True:
            with self._changed:
                while (frame := self._course.take_done()) is None:
                    if self._over:
                        return
                    self._changed.wait()
            yield frame

    @property
    def statistics(self) -> StreamStatistics:
        with self._changed:
            return self._course.tally.statistics()

    def finish(self) -> None:
        """Take no more frames; those that were handed over are still worked on."""
        with self._changed:
            self._course.finished = True
            self._changed.notify_all()

    def close(self) -> None:
        """End it: what is under way is given up, and the server told."""
        self.finish()
        self._cancel.cancel()
        self._worker.join()
        self._transport.close()

    @property
    def _over(self) -> bool:
        """Whether nothing more can come."""
        return not self._worker.is_alive() or (self._course.finished and self._course.idle and not self._busy)

    def _work(self) -> None:
        try:
            while (waiting := self._next()) is not None:
                frame = drive(self._course.serve(waiting), self._ask)
                with self._changed:
                    self._busy = False
                    self._course.keep(frame)
                    self._changed.notify_all()
            ending = self._course.end()
            if ending is not None:
                with suppress(CutawayError):
                    self._transport.infer(ending)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> Waiting | None:
        """The next frame, waited for; None at the end."""
        with self._changed:
            while not self._cancel.cancelled:
                waiting = self._course.next()
                if waiting is not None:
                    self._busy = True
                    return waiting
                if self._course.finished:
                    break
                self._changed.wait()
            return None

    def _ask(self, request: InferRequest) -> dict[str, Tensor]:
        return self._transport.infer(request, self._cancel)
