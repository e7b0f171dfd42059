"""The client for asyncio: a picture in, cut-outs back, or a typed error within the deadline."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from cutaway.call import LOOK, Call, CallKeywords, ClientKeywords, CompositeKeywords, CutKeywords, Settings, begin
from cutaway.contract.errors import CutawayError, ProcessingTimeout, RequestCancelled
from cutaway.contract.limits import CUT_MANY_JOBS, DEFAULT_URL
from cutaway.contract.options import OptionKeywords
from cutaway.fallback.chain import Served
from cutaway.health import PIPELINE, Health, check, combine
from cutaway.inputs import ImageInput
from cutaway.loop import Cancel, in_thread
from cutaway.many import Outcome, Progress, run_many
from cutaway.observe import requests_of
from cutaway.resilience import Deadline, Retries
from cutaway.result import CUT_OUTPUTS, DETECTION_OUTPUTS, CutResult, Detection, UpscaleResult
from cutaway.servers import Server, Servers
from cutaway.transports import open_transport
from cutaway.transports.base import ModelInfo, Tensor

if TYPE_CHECKING:
    from cutaway.composite import CompositeResult, Onto

T = TypeVar("T")

MODELS = (PIPELINE, "birefnet_trt", "yolov8_seg")

INLINE_BYTES = 1_000_000  # an encoded file up to this size is checked in less time than a thread's start takes
CLOSE_GRACE_S = 1.0  # for the calls that closing cancels, before it closes their connections


class AsyncClient:
    """Cuts people and objects out of pictures with Cutaway servers, under asyncio.

        async with AsyncClient("grpc://localhost:8001") as client:
            result = await client.cut("photo.jpg")

    Methods, arguments and errors are those of :class:`cutaway.Client`; cancelling a call's task cancels its request at
    the server. One client belongs to one event loop. Pictures are read, decoded and composed in threads, and a read
    that does not end is abandoned at the deadline.
    """

    def __init__(self, urls: str | Sequence[str] = DEFAULT_URL, **given: Unpack[ClientKeywords]) -> None:
        self._settings = settings = Settings(urls, **given)
        self._closed = False
        self._running: dict[asyncio.Timeout, tuple[asyncio.Task[Any], asyncio.Future[None]]] = {}
        members = []
        for each in settings.connections:  # a comprehension's frame would be one more in warnings
            members.append(Server(str(each.address), settings.transport or open_transport(each)))
        self._servers = Servers(members, always_ask=settings.fallback is None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process: it connects anew, and has a retry budget and circuit breakers of its own."""
        urls, given = self._settings.given
        for name, value in given.items():
            try:
                pickle.dumps(value)
            except Exception as error:
                raise TypeError(f"the client cannot be pickled, because of its {name}: {error}") from error
        return partial(type(self), urls, **given), ()

    @property
    def urls(self) -> tuple[str, ...]:
        return self._settings.urls

    @property
    def timeout_s(self) -> float:
        """Seconds that a call may take, unless it says otherwise."""
        return self._settings.timeout_s

    def __repr__(self) -> str:
        return f"<cutaway.AsyncClient {', '.join(self.urls)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End calls under way with RequestCancelled, and the connections. Calls after this raise RuntimeError."""
        self._closed = True
        loop = asyncio.get_running_loop()
        # Others belong to the process that this one was forked from.
        running = [each for each in self._running.items() if each[1][1].get_loop() is loop]
        for scope, (task, _) in running:
            if not task.cancelling():
                scope.reschedule(loop.time())
        if running:
            await asyncio.wait([ended for _, (_, ended) in running], timeout=CLOSE_GRACE_S)
        await self._servers.aclose()

    async def cut(self, image: ImageInput, **given: Unpack[CutKeywords]) -> CutResult:
        """See :meth:`cutaway.Client.cut`."""
        with self._begin("cut", given) as call:
            await self._answer(call, image)
            return await self._computed(call, call.cut_result)

    def cut_many(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        jobs: int = CUT_MANY_JOBS,
        ordered: bool = False,
        progress: Progress | None = None,
        timeout_s: float | None = None,
        cancel: Cancel | None = None,
        **options: Unpack[OptionKeywords],
    ) -> AsyncGenerator[Outcome, None]:
        """See :meth:`cutaway.Client.cut_many`; for ``async for``. Pictures may come from an async iterable, too."""
        self._check_open()
        if jobs < 1:
            raise ValueError("jobs is at least 1")
        cut = partial(self.cut, timeout_s=timeout_s, **options)
        return run_many(cut, images, jobs=jobs, ordered=ordered, progress=progress, cancel=cancel)

    async def detect(self, image: ImageInput, **given: Unpack[CutKeywords]) -> Detection:
        """See :meth:`cutaway.Client.detect`."""
        with self._begin("detect", given) as call:
            await self._answer(call, image)
            return await self._computed(call, call.detection)

    async def composite(self, image: ImageInput, onto: Onto, **given: Unpack[CompositeKeywords]) -> CompositeResult:
        """See :meth:`cutaway.Client.composite`."""
        from cutaway.composite import compose

        options: dict[str, Any] = dict(given)
        look = {name: options.pop(name) for name in LOOK if name in options}
        with self._begin("cut", options) as call:
            await self._answer(call, image)
            work = partial(compose, call.cut_result(restore=False), call.data, onto, **look)
            return await in_thread("composing", call.deadline, work)

    async def upscale(self, image: ImageInput, scale: int = 2, **given: Unpack[CallKeywords]) -> UpscaleResult:
        """See :meth:`cutaway.Client.upscale`."""
        with self._begin("upscale", given) as call:
            await self._read(call, image)
            fallback = self._settings.fallback
            assert fallback is not None
            async with self._until_closed():
                served = await fallback.upscale(call.data, call.media_type, scale=scale, deadline=call.deadline)
                return call.upscaled(served)

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """See :meth:`cutaway.Client.health`."""
        deadline = self._deadline(timeout_s)
        async with self._until_closed():
            return combine(
                await asyncio.gather(*(check(each.url, each.transport, deadline) for each in self._servers.members))
            )

    async def models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """See :meth:`cutaway.Client.models`."""
        deadline = self._deadline(timeout_s)
        async with self._until_closed():
            return await self._servers.models(MODELS, deadline)

    def _begin(self, operation: str, given: Mapping[str, Any]) -> AbstractContextManager[Call]:
        self._check_open()
        return begin(self._settings, operation, given)

    async def _answer(self, call: Call, image: ImageInput) -> None:
        await self._read(call, image)
        if self._settings.cache is None:
            await self._serve(call)
        elif not await in_thread("looking into the cache", call.deadline, call.find_cached):
            await self._serve(call)
            with suppress(ProcessingTimeout):  # the answer is there
                await in_thread("writing to the cache", call.deadline, call.store)

    async def _read(self, call: Call, image: ImageInput) -> None:
        decodes = self._settings.verify or self._settings.fit
        if isinstance(image, bytes) and len(image) <= INLINE_BYTES and not decodes:
            call.take(*call.read(image))
        else:
            call.take(*await in_thread("reading the picture", call.deadline, partial(call.read, image)))

    async def _serve(self, call: Call) -> None:
        async def infer(outputs: tuple[str, ...], turn: Deadline) -> Mapping[str, Tensor]:
            request, alone = call.request(outputs, turn), outputs == DETECTION_OUTPUTS
            retries = Retries(turn, self._settings.retry, self._settings.budget)
            try:
                answer = await self._servers.infer(request, turn, retries, nobody_else=alone)
            except CutawayError as error:
                call.requests += requests_of(error)
                raise
            return call.answered(answer, outputs)

        fallback = self._settings.fallback
        async with self._until_closed():
            if fallback is None or call.outputs == DETECTION_OUTPUTS:
                call.served(Served(await infer(call.outputs, call.deadline), "triton", 1))
                return
            known: dict[str, Any] = {"options": call.options, "deadline": call.deadline}
            call.served(await fallback.infer(call.data, call.media_type, **known, primary=partial(infer, CUT_OUTPUTS)))

    async def _computed(self, call: Call, result: Callable[[], T]) -> T:
        if not call.restores:
            return result()
        return await in_thread("bringing the cut-outs to the original's size", call.deadline, result)

    @asynccontextmanager
    async def _until_closed(self) -> AsyncIterator[None]:
        """Cancel the block with RequestCancelled when the client is closed."""
        if self._closed:
            raise RequestCancelled("The client was closed.")
        task, ended = asyncio.current_task(), asyncio.get_running_loop().create_future()
        assert task is not None
        try:
            async with asyncio.timeout(None) as scope:  # closing sets it to now
                self._running[scope] = task, ended
                yield
        except TimeoutError:
            if scope.expired():
                raise RequestCancelled("The client was closed.") from None
            raise
        finally:
            self._running.pop(scope, None)
            ended.set_result(None)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        self._check_open()
        return self._settings.deadline(timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
