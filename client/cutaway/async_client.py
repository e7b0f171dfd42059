"""The client for asyncio: the same as :class:`cutaway.Client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from cutaway.calls import DEFAULT_URL, MODELS, PIPELINE, Call, checked_timeout, no_upscaler, settings_of
from cutaway.closing import ended_by_async
from cutaway.contract.errors import CutawayError, ProcessingTimeout
from cutaway.contract.limits import COMPOSITE_QUALITY, CUT_MANY_JOBS, UPSCALE_LIMITS
from cutaway.contract.options import to_parameters
from cutaway.endpoints import AsyncEndpoint, AsyncEndpoints
from cutaway.fallback.chain import Served
from cutaway.health import Health, canary, combined
from cutaway.many import Outcome, run_many
from cutaway.resilience import Deadline
from cutaway.result import CUT_OUTPUTS, DETECTION_OUTPUTS, CutResult, Detection, Origin, UpscaleResult, read_cut
from cutaway.threads import Threads
from cutaway.transports.base import AsyncTransport, InferRequest, ModelInfo

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Unpack

    from cutaway.cache import ResultCache
    from cutaway.composite import CompositeResult, Onto, Placement
    from cutaway.contract.limits import InputLimits
    from cutaway.contract.options import CutOptions, OptionKeywords, WhoKeywords
    from cutaway.fallback import Fallback
    from cutaway.fallback.base import Provider
    from cutaway.inputs import EncodedPicture, ImageInput
    from cutaway.many import Progress
    from cutaway.observe import Observer
    from cutaway.resilience import RetryPolicy
    from cutaway.shared_memory import SharedMemory
    from cutaway.transports.base import MemoryKind
    from cutaway.transports.connection import Tls
    from cutaway.wire import Tensor

INLINE_BYTES = 1_000_000
"""The checks of an encoded file up to this size take less time than a thread's start, since they read its header."""


class AsyncClient:
    """Cuts people and objects out of pictures with Cutaway servers, under asyncio.

        async with AsyncClient("grpc://localhost:8001") as client:
            result = await client.cut("photo.jpg")

    Methods, arguments and errors are those of :class:`cutaway.Client`; a call is given up by cancelling its task, and
    the server sees that. One client belongs to one event loop. What is computed or read from disk here runs in threads
    of the client's own, and a read that does not end is left alone at the deadline.
    """

    def __init__(
        self,
        urls: str | Sequence[str] = DEFAULT_URL,
        *,
        timeout_s: float | None = None,
        token: str | None = None,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        retry: RetryPolicy | None = None,
        fallback: Fallback | Sequence[Provider] = (),
        cache: ResultCache | None = None,
        observers: Sequence[Observer] = (),
        verify: bool = False,
        max_decompression_ratio: float | None = None,
        shared_memory: SharedMemory | MemoryKind | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        if transport is not None and shared_memory is not None:
            raise ValueError("shared_memory is for the transports that come with the client")
        self._settings = settings_of(
            urls,
            timeout_s=timeout_s,
            token=token,
            api_key=api_key,
            headers=headers,
            tls=tls,
            retry=retry,
            fallback=fallback,
            cache=cache,
            observers=observers,
            verify=verify,
            max_decompression_ratio=max_decompression_ratio,
            shared_memory=shared_memory,
        )
        self._threads = Threads()
        self._endpoints = AsyncEndpoints(
            [
                AsyncEndpoint(
                    str(each.address), self._settings.open_async_transport(each) if transport is None else transport
                )
                for each in self._settings.connections
            ],
            always_ask=self._settings.fallback is None,
        )

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers' addresses."""
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
        """End the connections. Calls after this raise RuntimeError."""
        self._settings.closed = True
        self._settings.closing.cancel()
        await self._endpoints.aclose()

    async def cut(
        self,
        image: ImageInput,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **options: Unpack[OptionKeywords],
    ) -> CutResult:
        """See :meth:`cutaway.Client.cut`."""
        with self._settings.begin("cut", CUT_OUTPUTS, timeout_s, request_id, options) as call:
            await self._take(call, image, media_type)
            return await self._cut(call)

    def cut_many(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        jobs: int = CUT_MANY_JOBS,
        ordered: bool = False,
        progress: Progress | None = None,
        timeout_s: float | None = None,
        **options: Unpack[OptionKeywords],
    ) -> AsyncGenerator[Outcome, None]:
        """See :meth:`cutaway.Client.cut_many`; for ``async for``. Pictures may come from an async iterable, too."""
        self._settings.check_open()
        if jobs < 1:
            raise ValueError("jobs is at least 1")

        async def work(image: ImageInput) -> CutResult:
            return await self.cut(image, timeout_s=timeout_s, **options)

        return run_many(work, images, jobs=jobs, ordered=ordered, progress=progress)

    async def detect(
        self,
        image: ImageInput,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **options: Unpack[OptionKeywords],
    ) -> Detection:
        """See :meth:`cutaway.Client.detect`."""
        with self._settings.begin("detect", DETECTION_OUTPUTS, timeout_s, request_id, options) as call:
            await self._take(call, image, media_type)
            if not await self._find_cached(call):
                await self._keep(call, Served(await self._ask(call, DETECTION_OUTPUTS, call.deadline), "triton", 1))
            return call.detection()

    async def composite(
        self,
        image: ImageInput,
        onto: Onto,
        *,
        place: Placement | Sequence[Placement] | None = None,
        match_colour: float = 0.0,
        output: str = "png",
        quality: int = COMPOSITE_QUALITY,
        size_px: tuple[int, int] | None = None,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **who: Unpack[WhoKeywords],
    ) -> CompositeResult:
        """See :meth:`cutaway.Client.composite`."""
        from cutaway.composite import compose

        with self._settings.begin("cut", CUT_OUTPUTS, timeout_s, request_id, who) as call:
            await self._take(call, image, media_type)
            result = await self._cut(call)
            return await self._threads.run(
                "composing",
                call.deadline,
                lambda: compose(
                    result,
                    call.data,
                    onto,
                    place=place,
                    match_colour=match_colour,
                    output=output,
                    quality=quality,
                    size_px=size_px,
                ),
            )

    async def upscale(
        self,
        image: ImageInput,
        scale: int = 2,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> UpscaleResult:
        """See :meth:`cutaway.Client.upscale`."""
        with self._settings.begin("upscale", (), timeout_s, request_id, {}) as call:
            fallback = self._settings.fallback
            if fallback is None:
                raise no_upscaler()
            await self._take(call, image, media_type, bounds=UPSCALE_LIMITS)
            chain = fallback.upscale(call.data, call.media_type, scale=scale, deadline=call.deadline)
            served = await ended_by_async(self._settings.closing, chain)
            return call.upscale_result(served)

    async def health(self, *, timeout_s: float | None = None) -> Health:
        """See :meth:`cutaway.Client.health`."""
        self._settings.check_open()
        deadline = Deadline(self.timeout_s if timeout_s is None else checked_timeout(timeout_s))
        found = await asyncio.gather(*(self._health_of(endpoint, deadline) for endpoint in self._endpoints.members))
        return combined(found)

    async def models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """See :meth:`cutaway.Client.models`."""
        self._settings.check_open()
        deadline = Deadline(self.timeout_s if timeout_s is None else checked_timeout(timeout_s))
        return tuple(await self._endpoints.models(MODELS, deadline))

    async def _take(
        self, call: Call, image: ImageInput, media_type: str | None, *, bounds: InputLimits | None = None
    ) -> None:
        def read() -> tuple[CutOptions, EncodedPicture]:
            return call.read(image, media_type, bounds=bounds)

        if isinstance(image, bytes) and len(image) <= INLINE_BYTES and not self._settings.verify:
            call.taken(read())
        else:
            call.taken(await self._threads.run("reading the picture", call.deadline, read))

    async def _cut(self, call: Call) -> CutResult:
        if await self._find_cached(call):
            return call.cut_result()
        fallback = self._settings.fallback
        if fallback is None:
            served = Served(await self._ask(call, CUT_OUTPUTS, call.deadline), "triton", 1)
        else:
            chain = fallback.infer(
                call.data,
                call.media_type,
                options=call.checked_options,
                deadline=call.deadline,
                primary=lambda turn: self._ask(call, CUT_OUTPUTS, turn),
                detect=lambda turn: self._ask(call, DETECTION_OUTPUTS, turn),
            )
            served = await ended_by_async(self._settings.closing, chain)
        await self._keep(call, served)
        return call.cut_result()

    async def _ask(self, call: Call, outputs: tuple[str, ...], turn: Deadline) -> Mapping[str, Tensor]:
        with call.counting():
            answer = await self._endpoints.infer(
                call.request(outputs, turn), turn, call.retries(turn), nobody_else=outputs == DETECTION_OUTPUTS
            )
        return call.answered(answer, outputs)

    async def _find_cached(self, call: Call) -> bool:
        return self._settings.cache is not None and await self._threads.run(
            "looking into the cache", call.deadline, call.find_cached
        )

    async def _keep(self, call: Call, served: Served[Mapping[str, Tensor]]) -> None:
        call.take_served(served)
        if self._settings.cache is not None and served.tier == 1:
            with suppress(ProcessingTimeout):  # the answer is there
                await self._threads.run("writing to the cache", call.deadline, call.store)

    async def _health_of(self, endpoint: AsyncEndpoint, deadline: Deadline) -> Health:
        health, transport = Health(endpoint.url), endpoint.transport
        try:
            server = await transport.server_ready(deadline.left_s)
            health = health.readiness(server=server, model=await transport.model_ready(PIPELINE, deadline.left_s))
            if health.error is not None:
                return health
            begun = Deadline(deadline.left_s)
            outputs = await transport.infer(
                InferRequest(
                    PIPELINE, canary(), CUT_OUTPUTS, to_parameters({"subject": "all"}), "health", deadline.left_s
                )
            )
            return health.came_back(read_cut(outputs, Origin("triton", "health", begun.elapsed_s * 1000)))
        except CutawayError as error:
            return health.failed(error)
