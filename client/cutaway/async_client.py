"""The client for asyncio: a picture in, cut-outs back, or a typed error within the deadline; many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, repeat
from os import PathLike
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack, cast

from cutaway.call import Call, CallKeywords, ClientKeywords, CompositeKeywords, CutKeywords, Settings, begin
from cutaway.contract.errors import CutawayError, InferenceError, ProcessingTimeout, RequestCancelled, ServerRefused
from cutaway.contract.limits import CUT_MANY_JOBS, DEFAULT_URL
from cutaway.contract.options import OptionKeywords
from cutaway.fallback.chain import Served
from cutaway.inputs import ImageInput
from cutaway.loop import CANCELLED, Cancel, in_thread
from cutaway.resilience import Deadline, Retries
from cutaway.result import CUT_OUTPUTS, DETECTION_OUTPUTS, CutResult, Detection, UpscaleResult
from cutaway.servers import PIPELINE, Health, Server, Servers
from cutaway.transports import open_transport
from cutaway.transports.base import ModelInfo, Tensor

if TYPE_CHECKING:
    from cutaway.composite import CompositeResult, Onto

MODELS = (PIPELINE, "birefnet_trt", "yolov8_seg")

INLINE_BYTES = 1_000_000  # an encoded file up to this size is checked in less time than a thread's start takes
Progress: TypeAlias = Callable[[int, int | None], object]
"""Called with the number of finished pictures, failed ones included, and the total (None where unknown)."""
_END = object()
CLOSED = "The client was closed."
CLOSE_GRACE_S = 1.0  # for the calls that closing cancels, before it closes their connections


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


class AsyncClient:
    """Cuts people and objects out of pictures under asyncio: ``async with AsyncClient(url) as client``.

    Methods, arguments and errors are those of :class:`cutaway.Client`; cancelling a call's task cancels its request at
    the server. One client belongs to one event loop. Pictures are read, decoded and composed in threads, and a read
    that does not end is abandoned at the deadline.
    """

    def __init__(self, urls: str | Sequence[str] = DEFAULT_URL, **given: Unpack[ClientKeywords]) -> None:
        self._settings = settings = Settings(urls, **given)
        self.urls = settings.urls
        self._closed = False
        self._running: dict[asyncio.Task[Any], bool] = {}  # whether closing cancelled them
        # By map(), since a comprehension's frame would be one more in warnings.
        transports = repeat(settings.transport) if settings.transport else map(open_transport, settings.connections)
        members = [Server(url, transport) for url, transport in zip(self.urls, transports, strict=False)]
        self._servers = Servers(members, always_ask=settings.fallback is None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process: it connects anew, and has a retry budget and circuit breakers of its own."""
        urls, given = self._settings.given
        return partial(type(self), urls, **given), ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End calls under way with RequestCancelled, and the connections. Calls after this raise RuntimeError."""
        self._closed = True
        loop = asyncio.get_running_loop()
        # Others belong to the process that this one was forked from.
        running = [task for task in self._running if task.get_loop() is loop]
        for task in running:
            if not task.cancelling():
                self._running[task] = task.cancel()
        if running:
            await asyncio.wait(running, timeout=CLOSE_GRACE_S)
        await self._servers.aclose()

    async def cut(self, image: ImageInput, **given: Unpack[CutKeywords]) -> CutResult:
        """See :meth:`cutaway.Client.cut`."""
        return cast("CutResult", await self._detection("cut", image, given))

    def cut_many(
        self, images: Iterable[ImageInput] | AsyncIterable[ImageInput], **given: Unpack[ManyKeywords]
    ) -> AsyncGenerator[Outcome, None]:
        """See :meth:`cutaway.Client.cut_many`; for ``async for``. Pictures may come from an async iterable, too."""
        self._check_open()
        options: dict[str, Any] = dict(given)
        how = {name: options.pop(name) for name in ("jobs", "ordered", "progress", "cancel") if name in options}
        if how.get("jobs", 1) < 1:
            raise ValueError("jobs is at least 1")
        return run_many(partial(self.cut, **options), images, **how)

    async def detect(self, image: ImageInput, **given: Unpack[CutKeywords]) -> Detection:
        """See :meth:`cutaway.Client.detect`."""
        return await self._detection("detect", image, given)

    async def composite(self, image: ImageInput, onto: Onto, **given: Unpack[CompositeKeywords]) -> CompositeResult:
        """See :meth:`cutaway.Client.composite`."""
        from cutaway.composite import compose

        options: dict[str, Any] = dict(given)
        names = ("place", "match_colour", "output", "quality", "size_px")
        look = {name: options.pop(name) for name in names if name in options}
        with self._begin("cut", options) as call:
            await self._answer(call, image)
            cut = cast("CutResult", call.result(restore=False))
            work = partial(compose, cut, call.data, onto, **look)
            return await in_thread("composing", call.deadline, work)

    async def upscale(self, image: ImageInput, scale: int = 2, **given: Unpack[CallKeywords]) -> UpscaleResult:
        """See :meth:`cutaway.Client.upscale`."""
        with self._begin("upscale", given) as call:
            fallback = self._settings.fallback
            if fallback is None:
                message = "Your own servers do not upscale, and no hosted provider was named."
                raise ServerRefused(message, user_action="Name one: Client(url, fallback=[Replicate()]).")
            await self._read(call, image)
            async with self._until_closed():
                served = await fallback.upscale(call.data, call.media_type, scale=scale, deadline=call.deadline)
                return call.upscaled(served)

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """See :meth:`cutaway.Client.health`."""
        self._check_open()
        deadline = self._settings.deadline(timeout_s)
        async with self._until_closed():
            return await self._servers.health(deadline)

    async def models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """See :meth:`cutaway.Client.models`."""
        self._check_open()
        deadline = self._settings.deadline(timeout_s)
        async with self._until_closed():
            return await self._servers.models(MODELS, deadline)

    def _begin(self, operation: str, given: Mapping[str, Any]) -> AbstractContextManager[Call]:
        self._check_open()
        return begin(self._settings, operation, given)

    async def _detection(self, operation: str, image: ImageInput, given: Mapping[str, Any]) -> Detection:
        with self._begin(operation, given) as call:
            await self._answer(call, image)
            if not call.restores:
                return call.result()
            return await in_thread("bringing the cut-outs to the original's size", call.deadline, call.result)

    async def _answer(self, call: Call, image: ImageInput) -> None:
        await self._read(call, image)
        cache = self._settings.cache
        if cache is None:
            await self._serve(call)
            return
        key = cache.key(call.data, call.options, call.outputs, self.urls)
        found = await in_thread("looking into the cache", call.deadline, partial(cache.get, key))
        if found is not None:
            with suppress(InferenceError):
                call.served(Served(found, "triton", 1), from_cache=True)
                return
        served = await self._serve(call)
        if served.tier == 1:
            with suppress(ProcessingTimeout):  # the answer is there
                await in_thread("writing to the cache", call.deadline, partial(cache.put, key, served.value))

    async def _read(self, call: Call, image: ImageInput) -> None:
        if isinstance(image, bytes) and len(image) <= INLINE_BYTES and not self._settings.fit:
            call.take(*call.read(image))
        else:
            call.take(*await in_thread("reading the picture", call.deadline, partial(call.read, image)))

    async def _serve(self, call: Call) -> Served[Mapping[str, Tensor]]:
        async def infer(outputs: tuple[str, ...], turn: Deadline) -> Mapping[str, Tensor]:
            request, alone = call.request(outputs, turn), outputs == DETECTION_OUTPUTS
            retries = Retries(turn, self._settings.retry, self._settings.budget)
            try:
                answer = await self._servers.infer(request, turn, retries, nobody_else=alone)
            except CutawayError as error:
                call.requests += error.details.get("requests", 0)
                raise
            return call.answered(answer, outputs)

        fallback = self._settings.fallback
        async with self._until_closed():
            if fallback is None or call.outputs == DETECTION_OUTPUTS:
                served = Served(await infer(call.outputs, call.deadline), "triton", 1)
            else:
                own = {"primary": partial(infer, CUT_OUTPUTS), "detect": partial(infer, DETECTION_OUTPUTS)}
                known: dict[str, Any] = {"options": call.options, "deadline": call.deadline, **own}
                served = await fallback.infer(call.data, call.media_type, **known)
            call.served(served)
            return served

    @asynccontextmanager
    async def _until_closed(self) -> AsyncGenerator[None, None]:
        """Cancel the block with RequestCancelled when the client is closed."""
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = False
        try:
            if self._closed:
                raise RequestCancelled(CLOSED)
            yield
        except asyncio.CancelledError:
            if self._running[task] and task.uncancel() == 0:  # nobody else cancelled it
                raise RequestCancelled(CLOSED) from None
            raise
        finally:
            del self._running[task]

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")


async def run_many(
    cut: Callable[..., Any],
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
    return len(images) if hasattr(images, "__len__") else None
