"""The same as :mod:`cutaway.streaming.stream` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from cutaway.contract.errors import CutawayError
from cutaway.contract.limits import DEFAULT_URL, STREAM_OPTIONS, STREAM_TIMEOUT_S
from cutaway.resilience import drive_async
from cutaway.streaming.course import course_of

if TYPE_CHECKING:
    from typing import Self

    from cutaway.inputs import ImageInput
    from cutaway.streaming.course import Course
    from cutaway.streaming.frames import FrameInput, StreamFrame, StreamStatistics
    from cutaway.transports.connection import Tls


class AsyncStream:
    """Puts the people of a video before another background, under asyncio.

        async with AsyncStream("grpc://localhost:8001") as stream:
            stream.submit(frame)
            async for done in stream:
                ...

    Arguments and errors are those of :class:`cutaway.Stream`. A stream belongs to the event loop in which it is
    entered, and is used in there.
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
        self._transport = settings.open_async_transport(settings.connections[0])
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._busy = False

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._work(), name="cutaway-stream")
        self._worker.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def submit(self, frame: FrameInput) -> int:
        """See :meth:`cutaway.Stream.submit`; does not wait, and is not awaited."""
        number = self._course.submit(frame)
        self._arrived.set()
        return number

    async def latest(self, timeout_s: float = 0.0) -> StreamFrame | None:
        """See :meth:`cutaway.Stream.latest`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while (frame := self._course.take_latest()) is None:
            if self._over or not await self._waited(end - loop.time()):
                return None
        return frame

    async def __aiter__(self) -> AsyncIterator[StreamFrame]:
        """See :meth:`cutaway.Stream.__iter__`."""
        while True:
            while (frame := self._course.take_done()) is None:
                if self._over:
                    return
                await self._waited(None)
            yield frame

    @property
    def statistics(self) -> StreamStatistics:
        return self._course.tally.statistics()

    def finish(self) -> None:
        """See :meth:`cutaway.Stream.finish`."""
        self._course.finished = True
        self._arrived.set()
        self._changed.set()

    async def aclose(self) -> None:
        """See :meth:`cutaway.Stream.close`."""
        self.finish()
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker
        ending = self._course.end()
        if ending is not None:
            with suppress(CutawayError):
                await self._transport.infer(ending)
        await self._transport.aclose()

    @property
    def _over(self) -> bool:
        if self._worker is None:
            raise RuntimeError("the stream was not entered: async with AsyncStream(…) as stream")
        return self._worker.done() or (self._course.finished and self._course.idle and not self._busy)

    async def _waited(self, timeout_s: float | None) -> bool:
        """Wait until something has changed; False where the seconds are over."""
        if timeout_s is not None and timeout_s <= 0:
            return False
        self._changed.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)
            return True
        return False

    async def _work(self) -> None:
        while True:
            waiting = self._course.next()
            if waiting is None:
                if self._course.finished:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            self._busy = True
            frame = await drive_async(self._course.serve(waiting), self._transport.infer)
            self._busy = False
            self._course.keep(frame)
            self._changed.set()
