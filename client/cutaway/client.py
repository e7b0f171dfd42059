"""The client: a picture in, cut-outs back, or a typed error within the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cutaway.calls import DEFAULT_URL, MODELS, PIPELINE, Call, checked_timeout, no_upscaler, settings_of
from cutaway.cancel import Cancel
from cutaway.closing import ended_by
from cutaway.contract.errors import CutawayError
from cutaway.contract.limits import COMPOSITE_QUALITY, CUT_MANY_JOBS, UPSCALE_LIMITS
from cutaway.contract.options import to_parameters
from cutaway.endpoints import Endpoint, Endpoints
from cutaway.fallback.chain import Served
from cutaway.health import Health, canary, combined
from cutaway.loop import run
from cutaway.many import Outcome, iterate_many
from cutaway.resilience import Deadline
from cutaway.result import CUT_OUTPUTS, DETECTION_OUTPUTS, CutResult, Detection, Origin, UpscaleResult, read_cut
from cutaway.transports.base import InferRequest, ModelInfo, Transport

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Unpack

    from cutaway.cache import ResultCache
    from cutaway.composite import CompositeResult, Onto, Placement
    from cutaway.contract.options import OptionKeywords, WhoKeywords
    from cutaway.fallback import Fallback
    from cutaway.fallback.base import Provider
    from cutaway.inputs import ImageInput
    from cutaway.many import Progress
    from cutaway.observe import Observer
    from cutaway.resilience import RetryPolicy
    from cutaway.shared_memory import SharedMemory
    from cutaway.transports.base import MemoryKind
    from cutaway.transports.connection import Tls
    from cutaway.wire import Tensor


class Client:
    """Cuts people and objects out of pictures with Cutaway servers.

        with Client("grpc://localhost:8001") as client:
            result = client.cut("photo.jpg", subject="each", background="#00FF00")
            result.save("cutouts")

    One client serves any number of threads at once and keeps its connections; clients share nothing with one another.
    It connects when first used and may be used again after any error.

    Args:
        urls: ``grpc://host:8001`` or ``http://host:8000``; ``grpcs://`` and ``https://`` with TLS. Several equal
            servers take turns, and one that fails rests for a while.
        timeout_s: seconds that a call may take in all, repeats and fallback included, unless the call says otherwise;
            30, or 60 with a fallback.
        token: sent as ``Authorization: Bearer …``; ``$CUTAWAY_TOKEN`` where None.
        api_key: sent as ``X-API-Key``; ``$CUTAWAY_API_KEY`` where None.
        headers: sent with every request, as HTTP headers or gRPC metadata.
        tls: own certificate authority, client certificate.
        retry: how often and after which waits what can help is repeated; ``RetryPolicy(retries=0)`` never repeats.
        fallback: hosted models that are asked, in order, where no server of yours serves. Pictures then leave for them.
        cache: answers of earlier calls with the same picture and options come from there.
        observers: told of every call, such as :class:`cutaway.observers.OpenTelemetry`.
        verify: decode pictures wholly before they are sent. Off, damage inside is found by the server, with the same
            error and less work here.
        max_decompression_ratio: takes the place of the table's, for servers whose operator raised it.
        shared_memory: "system" or "cuda" sends pictures through shared memory, to servers on this machine that allow
            it; one that does not is ServerRefused. See :class:`cutaway.SharedMemory`.
        transport: in place of what the URL's scheme says; the client closes it.

    Raises:
        ValueError: a URL is no address, or a number makes no sense.
        ImportError, RuntimeError: this machine has no such shared memory.
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
        transport: Transport | None = None,
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
        self._endpoints = Endpoints(
            [
                Endpoint(str(each.address), self._settings.open_transport(each) if transport is None else transport)
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
        return f"<cutaway.Client {', '.join(self.urls)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections. Calls after this raise RuntimeError."""
        self._settings.closed = True
        self._settings.closing.cancel()
        self._endpoints.close()

    def cut(
        self,
        image: ImageInput,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        cancel: Cancel | None = None,
        **options: Unpack[OptionKeywords],
    ) -> CutResult:
        """Cut people, or whatever the picture shows, out of a picture.

        Args:
            image: a path, an encoded file's bytes (JPEG, PNG, WebP, BMP), a binary file object, a data URI, a PIL
                image, or an HWC uint8 [0, 255] array (RGB or RGBA).
            media_type: what bytes are declared to be, such as "image/png"; a mismatch is refused.
            timeout_s: seconds for the whole call; the client's where None. A read that blocks (a pipe, a dead network
                drive) and Pillow's decoding cannot be interrupted: time they take counts, but they are waited for.
            request_id: for the server's log, up to 128 printable ASCII characters; made up where None.
            cancel: gives the call up from another thread; the server sees it.
            options: see :class:`cutaway.contract.options.OptionKeywords`. Lengths are in pixels.

        Raises:
            InputError: the picture or an option is refused, mostly before anything is sent; NoPersonDetected where
                people were asked for and there are none.
            ProcessingTimeout: the seconds are over.
            ServerUnavailable: nobody answers, the model is not there, the queue is full; NobodyServed where there was
                a fallback and it failed, too.
            InferenceError: a model failed, or the answer makes no sense.
            RequestCancelled: `cancel` was used.
            OSError: the path cannot be read.
        """
        with self._settings.begin("cut", CUT_OUTPUTS, timeout_s, request_id, options) as call:
            call.take(image, media_type)
            return self._cut(call, cancel)

    def cut_many(
        self,
        images: Iterable[ImageInput],
        *,
        jobs: int = CUT_MANY_JOBS,
        ordered: bool = False,
        progress: Progress | None = None,
        timeout_s: float | None = None,
        cancel: Cancel | None = None,
        **options: Unpack[OptionKeywords],
    ) -> Generator[Outcome, None, None]:
        """Cut many pictures out, several at a time; one failure does not end the rest.

            for outcome in client.cut_many(Path("in").glob("*.jpg"), jobs=8):
                if outcome.ok:
                    outcome.result.save(f"out/{outcome.source.stem}.png")

        Args:
            images: pictures as :meth:`cut` takes them; taken as they are needed, an iterator in a thread of its own,
                since it may have to wait. Where it raises, that ends the rest.
            jobs: pictures in flight at once.
            ordered: outcomes in the order of the pictures instead of in that of completion.
            progress: called with how many are done and how many there are (None where `images` has no length).
            timeout_s: seconds for each picture.
            cancel: ends it all.
            options: as in :meth:`cut`.

        Returns:
            An iterator of outcomes. Closing it, or leaving the loop, cancels what is in flight.

        Raises:
            ValueError: `jobs` is below 1.
            TypeError: `images` is one picture.
        """
        self._settings.check_open()
        if jobs < 1:
            raise ValueError("jobs is at least 1")

        async def cut(image: ImageInput) -> CutResult:
            stop = Cancel()
            try:
                return await asyncio.to_thread(self.cut, image, timeout_s=timeout_s, cancel=stop, **options)
            finally:
                stop.cancel()

        return iterate_many(cut, images, jobs=jobs, ordered=ordered, progress=progress, cancel=cancel)

    def detect(
        self,
        image: ImageInput,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        cancel: Cancel | None = None,
        **options: Unpack[OptionKeywords],
    ) -> Detection:
        """Find people without cutting them out: quicker, since no matte is computed.

        Arguments and errors are those of :meth:`cut`; hosted models do not detect, so that there is no fallback.
        """
        with self._settings.begin("detect", DETECTION_OUTPUTS, timeout_s, request_id, options) as call:
            call.take(image, media_type)
            if not call.find_cached():
                call.keep(Served(self._ask(call, DETECTION_OUTPUTS, call.deadline, cancel), "triton", 1))
            return call.detection()

    def composite(
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
        cancel: Cancel | None = None,
        **who: Unpack[WhoKeywords],
    ) -> CompositeResult:
        """Cut people out of a picture and put them onto something else.

        Args:
            image: as in :meth:`cut`.
            onto: a colour "#RRGGBB", another picture, or the blurred original: see :data:`cutaway.composite.Onto`.
            place: where and how large: one for all cut-outs together, or one for each; where they were, by default.
            match_colour: how far their colours go towards those of the new background, 0 to 1.
            output: "png", "webp" or "jpeg".
            quality: of a WebP or JPEG, 1 to 100.
            size_px: width and height of the result; those of the picture behind, or of the original, by default.
            who: the options that choose people.

        Raises:
            Errors as :meth:`cut`; InputError also where `onto` is no picture.
        """
        from cutaway.composite import compose

        with self._settings.begin("cut", CUT_OUTPUTS, timeout_s, request_id, who) as call:
            call.take(image, media_type)
            result = self._cut(call, cancel)
            return compose(
                result,
                call.data,
                onto,
                place=place,
                match_colour=match_colour,
                output=output,
                quality=quality,
                size_px=size_px,
            )

    def upscale(
        self,
        image: ImageInput,
        scale: int = 2,
        *,
        media_type: str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        cancel: Cancel | None = None,
    ) -> UpscaleResult:
        """Enlarge a picture of at most 1440p by 2 or 4 along each side, through the fallback's hosted models.

        Raises:
            InvalidOption: another scale.
            InputError: the picture is refused.
            ServerUnavailable: no provider was named, or none served.
            ProcessingTimeout: the seconds are over.
            RequestCancelled: `cancel` was used.
        """
        with self._settings.begin("upscale", (), timeout_s, request_id, {}) as call:
            fallback = self._settings.fallback
            if fallback is None:
                raise no_upscaler()
            call.take(image, media_type, bounds=UPSCALE_LIMITS)
            with ended_by(cancel, self._settings.closing) as stop:
                served = run(fallback.upscale(call.data, call.media_type, scale=scale, deadline=call.deadline), stop)
            return call.upscale_result(served)

    def health(self, *, timeout_s: float | None = None) -> Health:
        """Send a small picture through the pipeline: Triton calls a pipeline ready whose process is long dead.

        Never raises for what is wrong with the server; the answer tells.
        """
        self._settings.check_open()
        deadline = Deadline(self.timeout_s if timeout_s is None else checked_timeout(timeout_s))
        members = self._endpoints.members
        if len(members) == 1:
            return self._health_of(members[0], deadline)
        # Side by side, so that one that does not answer leaves the others their time.
        with ThreadPoolExecutor(len(members), thread_name_prefix="cutaway") as pool:
            return combined(list(pool.map(lambda each: self._health_of(each, deadline), members)))

    def models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """The pipeline and the models that it calls, as the first server that answers has them.

        Raises:
            ServerUnavailable, ProcessingTimeout: nobody answers.
        """
        self._settings.check_open()
        deadline = Deadline(self.timeout_s if timeout_s is None else checked_timeout(timeout_s))
        return tuple(self._endpoints.models(MODELS, deadline))

    def _cut(self, call: Call, cancel: Cancel | None) -> CutResult:
        if call.find_cached():
            return call.cut_result()
        fallback = self._settings.fallback
        if fallback is None:
            call.keep(Served(self._ask(call, CUT_OUTPUTS, call.deadline, cancel), "triton", 1))
        else:
            chain = fallback.infer(
                call.data,
                call.media_type,
                options=call.checked_options,
                deadline=call.deadline,
                primary=lambda turn: asyncio.to_thread(self._ask, call, CUT_OUTPUTS, turn, cancel),
                detect=lambda turn: asyncio.to_thread(self._ask, call, DETECTION_OUTPUTS, turn, cancel),
            )
            with ended_by(cancel, self._settings.closing) as stop:
                call.keep(run(chain, stop))
        return call.cut_result()

    def _ask(self, call: Call, outputs: tuple[str, ...], turn: Deadline, cancel: Cancel | None) -> Mapping[str, Tensor]:
        with call.counting():
            answer = self._endpoints.infer(
                call.request(outputs, turn), turn, call.retries(turn), cancel, nobody_else=outputs == DETECTION_OUTPUTS
            )
        return call.answered(answer, outputs)

    def _health_of(self, endpoint: Endpoint, deadline: Deadline) -> Health:
        health, transport = Health(endpoint.url), endpoint.transport
        try:
            server = transport.server_ready(deadline.left_s)
            health = health.readiness(server=server, model=transport.model_ready(PIPELINE, deadline.left_s))
            if health.error is not None:
                return health
            begun = Deadline(deadline.left_s)
            outputs = transport.infer(
                InferRequest(
                    PIPELINE, canary(), CUT_OUTPUTS, to_parameters({"subject": "all"}), "health", deadline.left_s
                )
            )
            return health.came_back(read_cut(outputs, Origin("triton", "health", begun.elapsed_s * 1000)))
        except CutawayError as error:
            return health.failed(error)
