"""Many pictures at once: bounded, one failure does not end the rest, and nothing goes on when nobody listens.

Pictures are taken apart from the loop over the outcomes: a source may have to wait (for a camera, a queue, or for what
becomes of the pictures before), and outcomes are handed out meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass
from os import PathLike
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from cutaway.cancel import Cancel
from cutaway.result import CutResult

if TYPE_CHECKING:
    from cutaway.inputs import ImageInput

T = TypeVar("T")

Progress: TypeAlias = "Callable[[int, int | None], object]"
"""Called with how many pictures are done, failed ones included, and how many there are (None where nobody knows)."""


@dataclass(frozen=True)
class Outcome:
    """What became of one of many pictures.

    Attributes:
        index: its place among the pictures given, from 0.
        source: the picture as it was given.
        result: the cut-outs, or None.
        error: why there are none, or None.
    """

    index: int
    source: ImageInput
    result: CutResult | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        return self.result is not None

    def unwrap(self) -> CutResult:
        """The result.

        Raises:
            Exception: the error, where there is none.
        """
        if self.result is None:
            assert self.error is not None
            raise self.error
        return self.result


def run_many(
    work: Callable[[ImageInput, Cancel], CutResult],
    images: Iterable[ImageInput],
    *,
    jobs: int,
    ordered: bool,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Generator[Outcome, None, None]:
    """Do the work for every picture, `jobs` at a time in threads, and yield outcomes as they come.

    Args:
        work: cuts one picture out; given a handle that cancels it.
        images: taken one by one as outcomes are asked for, never more than twice `jobs` ahead. What has a length is
            taken in the thread that iterates; an iterator, which may have to wait, in one thread of its own. It may
            raise, which ends the rest: outcomes of the pictures before come first.
        jobs: pictures in flight.
        ordered: yield in the order of the pictures instead of in that of completion.
        progress: see :data:`Progress`; called in the thread that iterates.
        cancel: ends the work: what is in flight fails with RequestCancelled, and no further picture is taken.
    """
    total = _length(_several(images))
    stop = Cancel()
    unregister = cancel.on_cancel(stop.cancel) if cancel is not None else None
    taken = _Taken(work, images, jobs, stop)
    done = 0
    try:
        while (outcome := taken.next_outcome(ordered=ordered)) is not None:
            done += 1
            if progress is not None:
                progress(done, total)
            yield outcome
        if taken.broken is not None:
            raise taken.broken
    finally:
        stop.cancel()
        taken.close()
        if unregister is not None:
            unregister()


class _Taken:
    """Pictures that were taken and are not handed out yet: at work, or done."""

    def __init__(
        self, work: Callable[[ImageInput, Cancel], CutResult], images: Iterable[ImageInput], jobs: int, stop: Cancel
    ) -> None:
        self._work = work
        self._source = enumerate(iter(images))
        self._jobs = jobs
        self._stop = stop
        self._lock = threading.Lock()
        self._pending: deque[Future[Outcome]] = deque()
        self._wanted = 0
        self._taking = False
        self._exhausted = False
        self._closed = False
        self.broken: BaseException | None = None
        # Bells, for news and for pictures that are wanted: they may be rung from a signal handler.
        self._news: SimpleQueue[None] = SimpleQueue()
        self._want: SimpleQueue[None] = SimpleQueue()
        stop.on_cancel(lambda: self._news.put(None))
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="cutaway")
        # In the caller's context, so that spans hang below the caller's.
        context = copy_context()
        self._apart = not isinstance(images, Sized)
        if self._apart:
            # A daemon, since nobody can wake a source that waits, and the interpreter would wait for it at its end.
            threading.Thread(target=context.run, args=(self._feed,), name="cutaway-source", daemon=True).start()

    def next_outcome(self, *, ordered: bool) -> Outcome | None:
        """The next one to hand out; None after the last."""
        while True:
            _drain(self._news)
            self._ask()
            with self._lock:
                among = [self._pending[0]] if ordered and self._pending else list(self._pending)
                over = not self._pending and (self._exhausted or self._stop.cancelled)
                ready = next((future for future in among if future.done()), None)
                if ready is not None:
                    self._pending.remove(ready)
            if ready is not None:
                return ready.result()
            if over:
                return None
            self._news.get()

    def close(self) -> None:
        """Take no more, and wait for what is at work, but for no source: what it still gives is dropped."""
        with self._lock:
            self._closed = True
        self._want.put(None)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self) -> None:
        """Have as many pictures taken as there is room for now."""
        with self._lock:
            running = sum(not future.done() for future in self._pending)
            self._wanted = min(self._jobs - running, 2 * self._jobs - len(self._pending)) - self._taking
        if self._apart:
            self._want.put(None)
        else:
            while self._take():
                pass

    def _feed(self) -> None:
        try:
            while not self._closed and not self._exhausted:
                _drain(self._want)
                if not self._take():
                    self._want.get()
        except BaseException as error:
            self.broken, self._exhausted = error, True
            self._news.put(None)

    def _take(self) -> bool:
        """Take a picture and begin; False where none is wanted, or there is none."""
        with self._lock:
            if self._wanted < 1 or self._exhausted or self._over():
                return False
            self._wanted -= 1
            self._taking = True
        try:
            index, image = next(self._source)
        except StopIteration:
            pass
        except Exception as error:
            self.broken = error
        else:
            with self._lock:
                self._taking = False
                if self._over():
                    return False
                future = self._pool.submit(copy_context().run, self._one, index, image)
                self._pending.append(future)
            future.add_done_callback(lambda _: self._news.put(None))
            return True
        self._exhausted = True
        self._news.put(None)
        return False

    def _over(self) -> bool:
        return self._closed or self._stop.cancelled

    def _one(self, index: int, image: ImageInput) -> Outcome:
        try:
            return Outcome(index, image, self._work(image, self._stop))
        except Exception as error:
            return Outcome(index, image, error=error)


def _drain(bell: SimpleQueue[None]) -> None:
    """Forget that it rang, which is to be done before looking at what it may have rung for."""
    while not bell.empty():
        bell.get()


async def run_many_async(
    work: Callable[[ImageInput], Awaitable[CutResult]],
    images: Iterable[ImageInput] | AsyncIterable[ImageInput],
    *,
    jobs: int,
    ordered: bool,
    progress: Progress | None = None,
) -> AsyncGenerator[Outcome, None]:
    """The same as :func:`run_many` with tasks; closing the iterator cancels those in flight.

    An asynchronous source runs in one task of its own, a synchronous one in the event loop, which it must not hold up.
    """
    total = _length(_several(images))
    pending: deque[asyncio.Task[Outcome]] = deque()
    news, want = asyncio.Event(), asyncio.Event()
    wanted = taking = done = 0

    async def one(index: int, image: ImageInput) -> Outcome:
        try:
            return Outcome(index, image, await work(image))
        except Exception as error:
            return Outcome(index, image, error=error)

    def ask() -> int:
        nonlocal wanted
        running = sum(not task.done() for task in pending)
        wanted = min(jobs - running, 2 * jobs - len(pending)) - taking
        want.set()
        return wanted

    async def is_wanted() -> None:
        nonlocal wanted, taking
        taking = 0
        while wanted < 1:
            want.clear()
            await want.wait()
        wanted -= 1
        taking = 1

    async def feed() -> None:
        async with aclosing(_asynchronous(images)) as source:
            await is_wanted()
            index = 0
            async for image in source:
                pending.append(asyncio.ensure_future(one(index, image)))
                pending[-1].add_done_callback(lambda _: news.set())
                index += 1
                await is_wanted()

    feeder = asyncio.ensure_future(feed())
    feeder.add_done_callback(lambda _: news.set())
    try:
        while pending or not feeder.done():
            news.clear()
            if ask() > 0:
                await asyncio.sleep(0)  # what the source has at hand is begun before the caller goes on
            ready = [task for task in ([pending[0]] if ordered and pending else pending) if task.done()]
            if not ready:
                await news.wait()
                continue
            pending.remove(ready[0])
            done += 1
            if progress is not None:
                progress(done, total)
            yield ready[0].result()
        await feeder
    finally:
        feeder.cancel()
        await asyncio.gather(feeder, return_exceptions=True)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _asynchronous(images: Iterable[ImageInput] | AsyncIterable[ImageInput]) -> AsyncGenerator[ImageInput, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


def _several(images: T) -> T:
    if isinstance(images, (str, bytes, bytearray, memoryview, PathLike)):
        raise TypeError(f"several pictures were expected, not one {type(images).__name__}: put it into a list")
    return images


def _length(images: object) -> int | None:
    try:
        return len(images)  # type: ignore[arg-type]
    except TypeError:
        return None
