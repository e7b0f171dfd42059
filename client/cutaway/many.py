"""Many pictures: a bounded number in flight, taken lazily; one failure does not end the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sized
from dataclasses import dataclass
from itertools import chain, count
from os import PathLike
from typing import Any, TypeAlias

from cutaway.contract.errors import RequestCancelled
from cutaway.contract.limits import CUT_MANY_JOBS
from cutaway.contract.options import OptionKeywords
from cutaway.inputs import ImageInput
from cutaway.loop import CANCELLED, Cancel, in_thread
from cutaway.result import CutResult

Cut: TypeAlias = Callable[[ImageInput], Awaitable[CutResult]]
Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with the number of finished pictures, failed ones included, and the total (None where unknown)."""
_END = object()


class ManyKeywords(OptionKeywords, total=False):
    """The keyword arguments of :meth:`cutaway.Client.cut_many`."""

    jobs: int
    ordered: bool
    progress: Progress | None
    timeout_s: float | None
    cancel: Cancel | None


@dataclass(frozen=True)
class Outcome:
    """The `result` or the `error` of the picture `source`, at position `index` (from 0) of those given."""

    index: int
    source: ImageInput
    result: CutResult | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        return self.result is not None

    def unwrap(self) -> CutResult:
        """The result; raises the error where there is none."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


async def run_many(
    cut: Cut,
    images: Iterable[ImageInput] | AsyncIterable[ImageInput],
    *,
    jobs: int = CUT_MANY_JOBS,
    ordered: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Cut at most `jobs` pictures at once, taken lazily, at most 2 x `jobs` ahead; closing the generator cancels those
    in flight. At `cancel` they fail with RequestCancelled, and no further one is taken."""
    total, done, cancel = _length(images), 0, cancel or Cancel()
    ahead, running = asyncio.Semaphore(2 * jobs), asyncio.Semaphore(jobs)
    finished: asyncio.Queue[Outcome | None] = asyncio.Queue()
    waiting: dict[int, Outcome] = {}

    async def one(index: int, image: ImageInput) -> None:
        outcome = Outcome(index, image, error=RequestCancelled(CANCELLED))
        try:
            async with running:
                outcome = Outcome(index, image, await cut(image))
        except Exception as error:
            outcome = Outcome(index, image, error=error)
        finally:
            finished.put_nowait(outcome)

    async def take() -> None:
        source = images if isinstance(images, AsyncIterable) else _read(images)
        numbers, failure = count(), None
        async with asyncio.TaskGroup() as group:
            try:
                await ahead.acquire()
                async for image in source:
                    group.create_task(one(next(numbers), image))
                    await ahead.acquire()
            except Exception as error:
                failure = error  # and not raised in here, which would cancel the tasks
            finally:
                if isinstance(source, AsyncGenerator):
                    await source.aclose()
        if failure is not None:
            raise failure

    taker, event_loop = asyncio.create_task(take()), asyncio.get_running_loop()
    taker.add_done_callback(lambda _: finished.put_nowait(None))
    unregister = cancel.on_cancel(lambda: event_loop.call_soon_threadsafe(taker.cancel))
    try:
        while (outcome := await finished.get()) is not None:
            waiting[outcome.index] = outcome
            while ready := waiting.pop(done if ordered else outcome.index, None):
                done += 1
                if progress is not None:
                    progress(done, total)
                yield ready
                ahead.release()
        if not cancel.cancelled:
            await taker
    finally:
        unregister()
        taker.cancel()
        await asyncio.gather(taker, return_exceptions=True)


async def _read(images: Iterable[Any]) -> AsyncGenerator[Any, None]:
    items = chain.from_iterable([images])  # iter(images) may block, too
    while (item := await in_thread("reading the pictures' names", None, lambda: next(items, _END))) is not _END:
        yield item


def _length(images: object) -> int | None:
    if isinstance(images, (str, bytes, bytearray, memoryview, PathLike)):
        raise TypeError(f"several pictures were expected, not one {type(images).__name__}: put it into a list")
    return len(images) if isinstance(images, Sized) else None
