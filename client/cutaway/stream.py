"""A video's frames through a server: the latest frame wins. One is in flight at a time, because a second one would wait
in the server and be older than one sent later; the newest waits here."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from cutaway import loop
from cutaway.call import ServerKeywords, Settings
from cutaway.contract import errors, limits
from cutaway.contract.errors import CutawayError, InputError
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.options import parse_stream_options, to_parameters
from cutaway.inputs import ImageInput, encode
from cutaway.report import Notice, Report, parse_report
from cutaway.transports import open_transport
from cutaway.transports.base import InferRequest, SequencePart
from cutaway.transports.failures import malformed

T = TypeVar("T")
FrameInput: TypeAlias = bytes | NDArray[np.uint8]
"""An encoded file (JPEG mostly), or an array: HWC uint8 [0, 255] with 3 channels in the stream's order."""
STREAM = "stream_pipeline"
END_TIMEOUT_S = 0.5  # of the request that ends a stream; without it the server's own timeout ends it


@dataclass(frozen=True)
class StreamFrame:
    """One frame that is done: the `id` that `submit` returned, the `image` (an array for an array, of the same shape; a
    JPEG's bytes for an encoded file), whether it came back `untouched` (why is in `error`, or a warning of the report),
    and milliseconds since `submit`. The report is None without an answer; an InputError is about this frame alone."""

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
        return (Notice(limits.UNTOUCHED, message, limits.Tier.MEDIUM, {**self.error.details, "code": self.error.code}),)

    @property
    def overloaded(self) -> bool:
        """Whether it is untouched because the server shed it: too much load, or too many streams."""
        codes = [warning.details.get("code") for warning in self.warnings]
        return self.untouched and errors.Overloaded.code in codes


@dataclass(frozen=True)
class StreamStatistics:
    """Counts of a stream's frames: `submitted`, `done`, `dropped` (a newer one replaced them before they were sent),
    `skipped` (not taken in time), `untouched`, and those of them that are `overloaded`."""

    submitted: int = 0
    done: int = 0
    dropped: int = 0
    skipped: int = 0
    untouched: int = 0
    overloaded: int = 0


class StreamKeywords(ServerKeywords, total=False):
    """The keyword arguments of a stream; for options None keeps the server's default."""

    background: ImageInput
    min_confidence: float | None
    smoothing: float | None
    channels: Literal["rgb", "bgr"] | None
    quality: int | None
    timeout_s: float


class AsyncStream:
    """Puts the people of a video before another background, under asyncio: ``async with AsyncStream(url) as stream``.

    Arguments, methods and errors are those of :class:`cutaway.Stream`. It is entered and used in one event loop.
    """

    def __init__(self, url: str = limits.DEFAULT_URL, **given: Unpack[StreamKeywords]) -> None:
        rest: dict[str, Any] = {"timeout_s": limits.STREAM_TIMEOUT_S, **given}
        options = {name: rest.pop(name, None) for name in limits.STREAM_OPTIONS}
        background, self._background = options["background"], None
        if background is not None and not (isinstance(background, str) and background.startswith(("#", "blur:"))):
            options["background"], self._background = "picture", encode(background, verify=True).data
        parse_stream_options(options)
        self._parameters = to_parameters(options)
        self._settings = Settings(url, **rest)
        self._transport = self._settings.transport or open_transport(self._settings.connections[0])
        # Kept for good: a start under the same id takes the old place at the server.
        self._sequence_id = 1 + secrets.randbelow(2**62)
        self._headers = {"x-cutaway-stream": str(self._sequence_id)}  # by which a balancer keeps to one server
        self._started = self._finished = False
        self._waiting: tuple[int, FrameInput, float] | None = None
        self._done: deque[StreamFrame] = deque(maxlen=limits.STREAM_RESULTS_KEPT)
        self._counts: Counter[str] = Counter()
        self._back_off_s = self._back_off_until = 0.0
        self._failure: CutawayError = errors.ServerUnavailable("No request was sent yet.")
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work(), name="cutaway-stream")
        self._worker.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def submit(self, frame: FrameInput) -> int:
        """See :meth:`cutaway.Stream.submit`; not awaited."""
        at, image = time.perf_counter(), _checked(frame)
        if self._finished:
            raise RuntimeError("the stream is finished: it takes no more frames")
        self._counts["submitted"] += 1
        self._counts["dropped"] += self._waiting is not None
        self._waiting = self._counts["submitted"], image, at
        self._changed.set()
        return self._counts["submitted"]

    async def latest(self, timeout_s: float = 0.0) -> StreamFrame | None:
        """See :meth:`cutaway.Stream.latest`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._done and not self._over and timeout_s > 0:
                    await self._change()
        if not self._done:
            return None
        self._counts["skipped"] += len(self._done) - 1
        frame = self._done.pop()
        self._done.clear()
        return frame

    async def __aiter__(self) -> AsyncGenerator[StreamFrame, None]:
        """See :meth:`cutaway.Stream.__iter__`."""
        while self._done or not self._over:
            if self._done:
                yield self._done.popleft()
            else:
                await self._change()

    @property
    def statistics(self) -> StreamStatistics:
        return StreamStatistics(**self._counts)

    def finish(self) -> None:
        """See :meth:`cutaway.Stream.finish`."""
        self._finished = True
        self._changed.set()

    async def aclose(self) -> None:
        """See :meth:`cutaway.Stream.close`."""
        self.finish()
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        if self._started:
            self._started, part = False, SequencePart(self._sequence_id, ends=True)
            end = InferRequest(STREAM, b"", ("report",), {}, "", END_TIMEOUT_S, self._headers, {}, part)
            with suppress(CutawayError):
                await self._transport.infer(end)
        await self._transport.aclose()

    @property
    def _over(self) -> bool:
        """Whether no further frame can be done."""
        if self._worker is None:
            raise RuntimeError("the stream was not entered: async with AsyncStream(…) as stream")
        return self._worker.done()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _work(self) -> None:
        while self._waiting is not None or not self._finished:
            if self._waiting is None:
                await self._change()
                continue
            (number, image, at), self._waiting = self._waiting, None
            frame = replace(await self._serve(number, image), latency_ms=(time.perf_counter() - at) * 1000)
            self._counts.update(done=1, untouched=frame.untouched, overloaded=frame.overloaded)
            self._counts["skipped"] += len(self._done) == self._done.maxlen
            self._done.append(frame)
            self._changed.set()

    async def _serve(self, number: int, image: FrameInput) -> StreamFrame:
        """The frame that the server made of a submitted one; the submitted one, untouched, where it fails."""
        while time.monotonic() >= self._back_off_until:
            starts, self._started = not self._started, True
            try:
                frame = await self._send(number, image, starts)
            except (InputError, errors.RequestCancelled) as error:
                return StreamFrame(number, image, True, error)
            except CutawayError as error:
                self._started = False
                # Otherwise the server may only have ended this stream, or have restarted: it is started once more.
                if starts or isinstance(error, errors.ProcessingTimeout):
                    wait_s = max(2 * self._back_off_s, limits.STREAM_BACK_OFF_FIRST_S)
                    self._failure, self._back_off_s = error, min(wait_s, limits.STREAM_BACK_OFF_MAX_S)
                    self._back_off_until = time.monotonic() + self._back_off_s
            else:
                self._back_off_s = 0.0
                return frame
        return StreamFrame(number, image, True, self._failure)

    async def _send(self, number: int, image: FrameInput, starts: bool) -> StreamFrame:
        """The server's answer; InferenceError where it is malformed."""
        is_file = isinstance(image, bytes)
        inputs = {"file" if is_file else "frame": image}
        if starts and self._background is not None:
            inputs["background"] = self._background
        wanted = "jpeg" if is_file else "frame"
        parameters, part = self._parameters if starts else {}, SequencePart(self._sequence_id, begins=starts)
        sent = (STREAM, b"", (wanted, "report"), parameters, f"frame-{number}", self._settings.timeout_s, self._headers)
        outputs = await self._transport.infer(InferRequest(*sent, inputs=inputs, sequence=part))
        reports, done = outputs.get("report"), outputs.get(wanted)
        if not isinstance(reports, list) or len(reports) != 1:
            raise malformed("it holds no report")
        report = parse_report(reports[0])
        untouched = report.raw.get("untouched") is True
        if isinstance(image, bytes):
            if not isinstance(done, list) or len(done) != 1:
                raise malformed("it holds no JPEG")
            return StreamFrame(number, image if untouched else done[0], untouched, report=report)
        if not isinstance(done, np.ndarray) or done.dtype != np.uint8 or done.shape != image.shape:
            raise malformed("its frame has another form than the one that was sent")
        return StreamFrame(number, done.view(np.uint8), untouched, report=report)


def _checked(frame: FrameInput) -> FrameInput:
    """A frame within `STREAM_LIMITS`, else an InputError; an array is copied, since a camera's library reuses it."""
    if isinstance(frame, bytes):
        # A camera's JPEG without its end marker was cut on its way: no picture to repair, but a frame to drop.
        if check_picture(frame, limits=limits.STREAM_LIMITS).end_bytes is not None:
            raise errors.CorruptImage("The JPEG ends before its picture does.")
        return frame
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        received = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        details = {"supported": [*limits.STREAM_LIMITS.formats, "uint8 (height, width, 3)"], "received": received}
        message = f"A frame is an encoded file's bytes or a uint8 array (height, width, 3), not {received}."
        raise errors.InvalidFormat(message, details=details)
    check_dimensions(PictureHeader("raw", frame.shape[1], frame.shape[0]), limits.STREAM_LIMITS)
    return np.array(frame, order="C", copy=True)


class Stream:
    """Puts the people of a video before another background, frame by frame, with as little delay as possible.

        with Stream("grpc://localhost:8001", background="#00FF00", channels="bgr") as stream:
            while True:
                stream.submit(camera.read()[1])
                if done := stream.latest():
                    show(done.image)

    Where frames come faster than the server answers, the newest one is sent, and older ones are dropped and counted.
    Where it fails, frames come back untouched with a warning. Methods may be called from any thread. For people only
    and without mattes: edges are coarser than those of :meth:`cutaway.Client.cut`.

    Args:
        url: as :class:`cutaway.Client` takes it; so are `token`, `api_key`, `headers`, `tls` and `transport`.
        background: a colour "#RRGGBB", "blur:<px>" for the blurred frame, or a picture, which is sent once.
        min_confidence, smoothing, channels, quality: see :data:`cutaway.contract.limits.STREAM_OPTIONS`.
        timeout_s: seconds after which a frame comes back untouched.

    Raises:
        InputError, ValueError: an option is out of range, the background is no picture, or the URL no address.
        OSError: the background's file cannot be read.
    """

    def __init__(self, url: str = limits.DEFAULT_URL, **given: Unpack[StreamKeywords]) -> None:
        self._stream = AsyncStream(url, **given)
        loop.run(self._stream.__aenter__())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, frame: FrameInput) -> int:
        """Hand over a frame, HWC uint8 [0, 255] with 3 channels (copied) or an encoded file's bytes, and return its
        number, from 1 upwards, without waiting; InputError where it is none, RuntimeError after :meth:`finish`."""
        return self._call(lambda: self._stream.submit(frame))

    def latest(self, timeout_s: float = 0.0) -> StreamFrame | None:
        """The newest frame that is done (older ones are skipped), or None after `timeout_s` seconds without one."""
        return loop.run(self._stream.latest(timeout_s))

    def __iter__(self) -> Iterator[StreamFrame]:
        """Frames that are done, in their order, until the stream is finished and all of them are taken."""
        return loop.iterate(aiter(self._stream))

    @property
    def statistics(self) -> StreamStatistics:
        return self._call(lambda: self._stream.statistics)

    def finish(self) -> None:
        """Take no more frames; those that were submitted are still served."""
        self._call(self._stream.finish)

    def close(self) -> None:
        """End the stream: the request in flight is cancelled, and the server ends the stream, too."""
        loop.run(self._stream.aclose())

    @staticmethod
    def _call(function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return loop.run(call())
