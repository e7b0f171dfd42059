"""What `Client` and `AsyncClient` share: their settings, and one call on its way. Nothing here waits for a network."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cutaway.cancel import Cancel
from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, ServerRefused
from cutaway.contract.limits import INPUT_LIMITS, MEDIA_TYPES, InputLimits
from cutaway.contract.options import CutOptions, parse_options, to_parameters
from cutaway.fallback.chain import Served
from cutaway.inputs import EncodedPicture, encode
from cutaway.observe import Observation, Observer, ServedFacts, observed, requests_of
from cutaway.resilience import Deadline, Retries, RetryBudget, RetryPolicy
from cutaway.result import CUT_OUTPUTS, CutResult, Detection, Origin, UpscaleResult, read_cut, read_detection
from cutaway.transports.base import InferRequest

if TYPE_CHECKING:
    from typing import Self

    from cutaway.cache import ResultCache
    from cutaway.endpoints import Answer
    from cutaway.fallback import Fallback
    from cutaway.fallback.answers import Upscaled
    from cutaway.fallback.base import Provider
    from cutaway.inputs import ImageInput
    from cutaway.shared_memory import SharedMemory
    from cutaway.transports.base import AsyncTransport, MemoryKind, Transport
    from cutaway.transports.connection import Connection, Tls
    from cutaway.wire import Tensor

DEFAULT_URL = limits.DEFAULT_URL
PIPELINE = "ensemble_pipeline"
MODELS = (PIPELINE, "birefnet_trt", "yolov8_seg")
TOKEN_VARIABLE = "CUTAWAY_TOKEN"  # noqa: S105 (a variable's name)
API_KEY_VARIABLE = "CUTAWAY_API_KEY"
MAX_REQUEST_ID_CHARS = 128


@dataclass
class Settings:
    """What a client was told, checked."""

    connections: tuple[Connection, ...]
    timeout_s: float
    retry: RetryPolicy
    fallback: Fallback | None
    cache: ResultCache | None
    observers: tuple[Observer, ...]
    verify: bool
    limits: InputLimits
    shared_memory: SharedMemory | None = None
    budget: RetryBudget = field(default_factory=RetryBudget)
    closed: bool = False
    closing: Cancel = field(default_factory=Cancel)
    """Ends the hosted calls of this client; the chain may be another client's too."""

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(str(connection.address) for connection in self.connections)

    def open_transport(self, connection: Connection) -> Transport:
        """The way to one of the servers."""
        if self.shared_memory is None:
            from cutaway.transports.connection import open_transport

            return open_transport(connection)
        from cutaway.shared_memory.transports import SharingTransport

        return SharingTransport(connection, self.shared_memory)

    def open_async_transport(self, connection: Connection) -> AsyncTransport:
        """The same for asyncio."""
        if self.shared_memory is None:
            from cutaway.transports.connection import open_async_transport

            return open_async_transport(connection)
        from cutaway.shared_memory.transports import AsyncSharingTransport

        return AsyncSharingTransport(connection, self.shared_memory)

    def begin(
        self,
        operation: str,
        outputs: tuple[str, ...],
        timeout_s: float | None,
        request_id: str | None,
        options: Mapping[str, Any],
    ) -> Call:
        """A call that has just begun; a context manager.

        Raises:
            RuntimeError: the client is closed.
            ValueError: the timeout or the request id make no sense.
        """
        self.check_open()
        return Call(
            self,
            operation,
            outputs,
            Deadline(self.timeout_s if timeout_s is None else checked_timeout(timeout_s)),
            uuid.uuid4().hex if request_id is None else checked_id(request_id),
            options,
        )

    def check_open(self) -> None:
        if self.closed:
            raise RuntimeError("the client is closed")


def settings_of(
    urls: str | Sequence[str],
    *,
    timeout_s: float | None,
    token: str | None,
    api_key: str | None,
    headers: Mapping[str, str] | None,
    tls: Tls | None,
    retry: RetryPolicy | None,
    fallback: Fallback | Sequence[Provider],
    cache: ResultCache | None,
    observers: Sequence[Observer],
    verify: bool,
    max_decompression_ratio: float | None,
    shared_memory: SharedMemory | MemoryKind | None,
) -> Settings:
    """Check what a client was told.

    Raises:
        ValueError: a URL is no address, or a number makes no sense.
        ImportError, RuntimeError: this machine has no such shared memory.
    """
    from cutaway.shared_memory import shared_memory_of
    from cutaway.transports.base import parse_address
    from cutaway.transports.connection import Connection

    sent = {name.lower(): value for name, value in (headers or {}).items()}
    if token := token or os.environ.get(TOKEN_VARIABLE):
        sent["authorization"] = f"Bearer {token}"
    if api_key := api_key or os.environ.get(API_KEY_VARIABLE):
        sent["x-api-key"] = api_key
    addresses = [parse_address(url) for url in ([urls] if isinstance(urls, str) else urls)]
    if not addresses:
        raise ValueError("a client needs the address of at least one server")
    chain = _fallback(fallback)
    default_s = limits.PROCESSING_TIMEOUT_S if chain is None else limits.FALLBACK_TIMEOUT_S
    bounds = INPUT_LIMITS
    if max_decompression_ratio is not None:
        if not max_decompression_ratio > 0:
            raise ValueError("max_decompression_ratio has to be above 0")
        bounds = replace(INPUT_LIMITS, max_decompression_ratio=max_decompression_ratio)
    return Settings(
        connections=tuple(Connection(address, sent, tls) for address in addresses),
        timeout_s=default_s if timeout_s is None else checked_timeout(timeout_s),
        retry=retry or RetryPolicy(),
        fallback=chain,
        cache=cache,
        observers=tuple(observers),
        verify=verify,
        limits=bounds,
        shared_memory=shared_memory_of(shared_memory),
    )


def _fallback(given: Fallback | Sequence[Provider]) -> Fallback | None:
    from cutaway.fallback import Fallback

    if isinstance(given, Fallback):
        return given
    return Fallback(given) if given else None


class Call(AbstractContextManager["Call"]):
    """One call: its deadline, its picture, who is asked what, and what came of it.

    As a context manager it tells the observers, and sets the request's id on errors that leave it.
    """

    def __init__(
        self,
        settings: Settings,
        operation: str,
        outputs: tuple[str, ...],
        deadline: Deadline,
        request_id: str,
        options: Mapping[str, Any],
    ) -> None:
        self.settings = settings
        self.operation = operation
        self.outputs = outputs
        self.deadline = deadline
        self.request_id = request_id
        self.picture: EncodedPicture | None = None
        self.options: CutOptions | None = None
        self._given = options
        self._requests = 0
        self._url = ""
        self._cached = False
        self._served: Served[Mapping[str, Tensor]] | None = None
        self._observed = observed(settings.observers, operation, request_id)
        self._observation: Observation | None = None

    def __enter__(self) -> Self:
        self._observation = self._observed.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, CutawayError):
            error.request_id = self.request_id
            if self._requests:
                error.details["requests"] = self._requests
        self._observed.__exit__(kind, error, trace)

    # --------------------------------------------------------------------------------------------- before

    def take(self, image: ImageInput, media_type: str | None, *, bounds: InputLimits | None = None) -> None:
        """Check the options, and read or encode the picture, however long that takes.

        Raises:
            InputError, OSError, TypeError: see :func:`cutaway.inputs.encode`.
        """
        self.taken(self.read(image, media_type, bounds=bounds))

    def read(
        self, image: ImageInput, media_type: str | None, *, bounds: InputLimits | None = None
    ) -> tuple[CutOptions, EncodedPicture]:
        """The part of :meth:`take` that needs time, which leaves the call itself alone: it may be over meanwhile."""
        options = parse_options(self._given)
        return options, encode(
            image, media_type=media_type, limits=bounds or self.settings.limits, verify=self.settings.verify
        )

    def taken(self, read: tuple[CutOptions, EncodedPicture]) -> None:
        self.options, self.picture = read
        assert self._observation is not None
        self._observation.sent(len(self.picture.data), self.options)

    @property
    def data(self) -> bytes:
        assert self.picture is not None
        return self.picture.data

    @property
    def media_type(self) -> str:
        assert self.picture is not None
        return MEDIA_TYPES[self.picture.header.format]

    @property
    def checked_options(self) -> CutOptions:
        assert self.options is not None
        return self.options

    def find_cached(self) -> bool:
        """Whether the cache holds the answer; reads from disk."""
        cache = self.settings.cache
        if cache is None:
            return False
        found = cache.get(self._key(cache))
        if found is None:
            return False
        self._cached = True
        self._served = Served(found, "triton", 1)
        return True

    # --------------------------------------------------------------------------------------------- asking

    def request(self, outputs: tuple[str, ...], turn: Deadline) -> InferRequest:
        """What is sent to the pipeline, `turn` being all the time it has."""
        assert self._observation is not None
        return InferRequest(
            model=PIPELINE,
            image=self.data,
            outputs=outputs,
            parameters=to_parameters(self._given),
            request_id=self.request_id,
            timeout_s=turn.left_s,
            headers=self._observation.headers(),
        )

    def retries(self, turn: Deadline) -> Retries:
        return Retries(turn, self.settings.retry, self.settings.budget)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Servers of ours are asked in here: counts what was sent although nobody answered."""
        try:
            yield
        except CutawayError as error:
            self._requests += requests_of(error)
            raise

    def answered(self, answer: Answer, outputs: tuple[str, ...]) -> Mapping[str, Tensor]:
        """A server of ours answered; counts what that took.

        Raises:
            InferenceError: the answer makes no sense. Being found here, it is not kept, and others may be asked.
        """
        self._requests += answer.requests
        self._url = answer.url
        read = read_cut if outputs == CUT_OUTPUTS else read_detection
        read(answer.outputs, Origin("triton", self.request_id, 0.0))
        return answer.outputs

    # ---------------------------------------------------------------------------------------------- after

    def keep(self, served: Served[Mapping[str, Tensor]]) -> None:
        """Take what was served and, if it came from a server of ours, put it into the cache; writes to disk."""
        self.take_served(served)
        self.store()

    def take_served(self, served: Served[Mapping[str, Tensor]]) -> None:
        """Take what was served."""
        self._served = served

    def store(self) -> None:
        """Put what was served into the cache, if it came from a server of ours; writes to disk."""
        cache, served = self.settings.cache, self._served
        if cache is not None and served is not None and served.tier == 1:
            cache.put(self._key(cache), dict(served.value))

    def cut_result(self) -> CutResult:
        """
        Raises:
            InferenceError: the answer makes no sense.
        """
        assert self._served is not None
        result = read_cut(self._served.value, self._origin(self._served))
        self._told(result, sum(map(len, result.images)))
        return result

    def detection(self) -> Detection:
        """
        Raises:
            InferenceError: the answer makes no sense.
        """
        assert self._served is not None
        found = read_detection(self._served.value, self._origin(self._served))
        self._told(found, 0)
        return found

    def upscale_result(self, served: Served[Upscaled]) -> UpscaleResult:
        assert self._observation is not None
        value = served.value
        self._requests = 0
        result = UpscaleResult(
            data=value.data,
            media_type=value.media_type,
            width_px=value.width_px,
            height_px=value.height_px,
            model=value.model,
            licence=value.licence,
            cost=value.cost,
            origin=self._origin(served),
        )
        self._observation.served(
            ServedFacts(
                provider=served.provider,
                tier=served.tier,
                url="",
                requests=value.requests,
                from_cache=False,
                tried=served.tried,
                n_bytes=len(value.data),
            )
        )
        return result

    def _key(self, cache: ResultCache) -> str:
        return cache.key(self.data, self.checked_options, self.outputs, ",".join(sorted(self.settings.urls)))

    def _origin(self, served: Served[Any]) -> Origin:
        return Origin(
            provider=served.provider,
            request_id=self.request_id,
            elapsed_ms=self.deadline.elapsed_s * 1000,
            tier=served.tier,
            url=self._url if served.tier == 1 else "",
            tried=served.tried,
            requests=self._requests,
            from_cache=self._cached,
        )

    def _told(self, result: Detection, n_bytes: int) -> None:
        assert self._observation is not None
        self._observation.served(
            ServedFacts(
                provider=result.provider,
                tier=result.tier,
                url=result.origin.url,
                requests=result.requests,
                from_cache=result.from_cache,
                tried=result.tried,
                n_bytes=n_bytes,
                stage_ms=result.timings_ms,
                people=len(result.report.people),
                warnings=tuple(notice.code for notice in result.warnings),
            )
        )


def no_upscaler() -> ServerRefused:
    """The error for upscaling without a provider."""
    return ServerRefused(
        "Your own servers do not upscale, and no hosted provider was named.",
        user_action="Name one: Client(url, fallback=[Replicate()]).",
    )


def checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"a timeout is a number of seconds above 0, not {timeout_s}")
    return timeout_s


def checked_id(request_id: str) -> str:
    if not 0 < len(request_id) <= MAX_REQUEST_ID_CHARS or not (request_id.isascii() and request_id.isprintable()):
        raise ValueError(f"a request id has 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters")
    return request_id
