"""Many pictures at once: bounded, one failure does not end the rest, and nothing goes on when nobody listens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from os import PathLike
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
        images: taken one by one, never more than `jobs` ahead of what is done (twice that where `ordered`).
        jobs: pictures in flight.
        ordered: yield in the order of the pictures instead of in that of completion.
        progress: see :data:`Progress`; called in the thread that iterates.
        cancel: ends the work: what is in flight fails with RequestCancelled, and no further picture is taken.
    """
    total = _length(_several(images))
    feed = enumerate(iter(images))
    stop = Cancel()
    unregister = cancel.on_cancel(stop.cancel) if cancel is not None else None
    pending: deque[Future[Outcome]] = deque()
    running: set[Future[Outcome]] = set()
    exhausted, done = False, 0

    def one(index: int, image: ImageInput) -> Outcome:
        try:
            return Outcome(index, image, work(image, stop))
        except Exception as error:
            return Outcome(index, image, error=error)

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="cutaway")
    try:
        while True:
            running = {future for future in running if not future.done()}
            while not exhausted and not stop.cancelled and len(running) < jobs and len(pending) < 2 * jobs:
                try:
                    index, image = next(feed)
                except StopIteration:
                    exhausted = True
                    break
                # In the caller's context, so that spans hang below the caller's.
                future = pool.submit(copy_context().run, one, index, image)
                pending.append(future)
                running.add(future)
            if not pending:
                return
            first = _first_done(pending, running, ordered=ordered)
            if first is None:
                continue
            pending.remove(first)
            done += 1
            if progress is not None:
                progress(done, total)
            yield first.result()
    finally:
        stop.cancel()
        pool.shutdown(wait=True, cancel_futures=True)
        if unregister is not None:
            unregister()


def _first_done(
    pending: deque[Future[Outcome]], running: set[Future[Outcome]], *, ordered: bool
) -> Future[Outcome] | None:
    """The next outcome to hand out; None after a wait that only made room for another picture."""
    ready = [pending[0]] if ordered and pending[0].done() else []
    if not ordered:
        ready = [future for future in pending if future.done()]
    if ready:
        return ready[0]
    wait(running, return_when=FIRST_COMPLETED)
    return None


async def run_many_async(
    work: Callable[[ImageInput], Awaitable[CutResult]],
    images: Iterable[ImageInput] | AsyncIterable[ImageInput],
    *,
    jobs: int,
    ordered: bool,
    progress: Progress | None = None,
) -> AsyncGenerator[Outcome, None]:
    """The same as :func:`run_many` with tasks; closing the iterator cancels those in flight."""
    total = _length(_several(images))
    feed = _numbered(images)
    pending: deque[asyncio.Task[Outcome]] = deque()
    exhausted, done = False, 0

    async def one(index: int, image: ImageInput) -> Outcome:
        try:
            return Outcome(index, image, await work(image))
        except Exception as error:
            return Outcome(index, image, error=error)

    try:
        while True:
            running = [task for task in pending if not task.done()]
            while not exhausted and len(running) < jobs and len(pending) < 2 * jobs:
                try:
                    index, image = await anext(feed)
                except StopAsyncIteration:
                    exhausted = True
                    break
                task = asyncio.ensure_future(one(index, image))
                pending.append(task)
                running.append(task)
            if not pending:
                return
            ready = [task for task in ([pending[0]] if ordered else pending) if task.done()]
            if not ready:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                continue
            pending.remove(ready[0])
            done += 1
            if progress is not None:
                progress(done, total)
            yield ready[0].result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await feed.aclose()


async def _numbered(
    images: Iterable[ImageInput] | AsyncIterable[ImageInput],
) -> AsyncGenerator[tuple[int, ImageInput], None]:
    index = 0
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield index, image
            index += 1
    else:
        for image in images:
            yield index, image
            index += 1


def _several(images: T) -> T:
    if isinstance(images, (str, bytes, bytearray, memoryview, PathLike)):
        raise TypeError(f"several pictures were expected, not one {type(images).__name__}: put it into a list")
    return images


def _length(images: object) -> int | None:
    try:
        return len(images)  # type: ignore[arg-type]
    except TypeError:
        return None
