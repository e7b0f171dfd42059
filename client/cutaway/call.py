"""The state of one call: its deadline, picture and result. Nothing here waits for a network."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InferenceError, ServerRefused
from cutaway.contract.limits import INPUT_LIMITS, MEDIA_TYPES, UPSCALE_LIMITS
from cutaway.contract.options import CutOptions, parse_options, to_parameters
from cutaway.fit import Fitted, shrink
from cutaway.inputs import encode
from cutaway.observe import Observation, Observer, ServedFacts, observed, requests_of
from cutaway.resilience import Deadline, Retries, RetryBudget, RetryPolicy, checked_timeout
from cutaway.result import (
    CUT_OUTPUTS,
    DETECTION_OUTPUTS,
    CutResult,
    Detection,
    Origin,
    UpscaleResult,
    read_cut,
    read_detection,
)
from cutaway.transports.base import InferRequest, Transport
from cutaway.transports.connection import Tls, connections_of

if TYPE_CHECKING:
    from typing import Self

    from cutaway.cache import ResultCache
    from cutaway.fallback import Fallback
    from cutaway.fallback.answers import Upscaled
    from cutaway.fallback.base import Provider
    from cutaway.fallback.chain import Served
    from cutaway.inputs import ImageInput
    from cutaway.servers import Answer
    from cutaway.transports.base import Tensor

PIPELINE = "ensemble_pipeline"
TOKEN_VARIABLE = "CUTAWAY_TOKEN"  # noqa: S105 (a variable's name)
API_KEY_VARIABLE = "CUTAWAY_API_KEY"
MAX_REQUEST_ID_CHARS = 128


class ClientKeywords(TypedDict, total=False):
    """The keyword arguments of :class:`cutaway.Client` and :class:`cutaway.AsyncClient`; see there."""

    timeout_s: float | None
    token: str | None
    api_key: str | None
    headers: Mapping[str, str] | None
    tls: Tls | None
    retry: RetryPolicy | None
    fallback: Fallback | Sequence[Provider]
    cache: ResultCache | None
    observers: Sequence[Observer]
    verify: bool
    strict: bool
    fit: bool
    max_decompression_ratio: float | None
    transport: Transport | None


class Settings:
    """What a client was given, checked.

    Raises:
        ValueError: a URL is no address, a header cannot be sent, or a number makes no sense.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
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
        strict: bool = False,
        fit: bool = False,
        max_decompression_ratio: float | None = None,
        transport: Transport | None = None,
    ) -> None:
        from cutaway.fallback import Fallback

        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if token := token or os.environ.get(TOKEN_VARIABLE):
            sent["authorization"] = f"Bearer {token}"
        if api_key := api_key or os.environ.get(API_KEY_VARIABLE):
            sent["x-api-key"] = api_key
        self.connections = connections_of(urls, sent, tls)
        self.transport = transport
        self.retry, self.budget = retry or RetryPolicy(), RetryBudget()
        self.fallback = fallback if isinstance(fallback, Fallback) else Fallback(fallback) if fallback else None
        default_s = limits.PROCESSING_TIMEOUT_S if self.fallback is None else limits.FALLBACK_TIMEOUT_S
        self.timeout_s = default_s if timeout_s is None else checked_timeout(timeout_s)
        self.cache, self.observers = cache, tuple(observers)
        self.verify, self.strict, self.fit = verify, strict, fit
        self.limits = INPUT_LIMITS
        if max_decompression_ratio is not None:
            if not max_decompression_ratio > 0:
                raise ValueError("max_decompression_ratio has to be above 0")
            self.limits = replace(INPUT_LIMITS, max_decompression_ratio=max_decompression_ratio)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(str(connection.address) for connection in self.connections)


class Call(AbstractContextManager["Call"]):
    """One call; as a context manager it is observed, and its id is set on errors that leave it.

    Args:
        operation: "cut", "detect" or "upscale".

    Raises:
        ValueError: the timeout or the request id is invalid.
    """

    def __init__(
        self,
        settings: Settings,
        operation: str,
        timeout_s: float | None,
        request_id: str | None,
        options: Mapping[str, Any],
    ) -> None:
        self.settings = settings
        self._upscales = operation == "upscale"
        self.outputs = CUT_OUTPUTS if operation == "cut" else DETECTION_OUTPUTS
        self.deadline = Deadline(settings.timeout_s if timeout_s is None else checked_timeout(timeout_s))
        self.request_id = uuid.uuid4().hex if request_id is None else checked_id(request_id)
        self._given = options
        self._requests = 0
        self._url = ""
        self._parsed: Detection | None = None
        self._outputs: Mapping[str, Tensor] = {}
        self._origin = Origin("triton", self.request_id, 0.0)
        self._observed = observed(settings.observers, operation, self.request_id)

    def __enter__(self) -> Self:
        self._observation: Observation = self._observed.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, CutawayError):
            error.request_id = self.request_id
            if self._requests:
                error.details["requests"] = self._requests
        self._observed.__exit__(kind, error, trace)

    def take(self, image: ImageInput, media_type: str | None) -> None:
        """Check the options, and read or encode the picture, which may block.

        Raises:
            InputError, OSError, TypeError: see :func:`cutaway.inputs.encode`.
            ServerRefused: it is an upscaling, and there is no fallback.
        """
        self.taken(*self.read(image, media_type))

    def read(self, image: ImageInput, media_type: str | None) -> tuple[CutOptions, Fitted]:
        """The part of :meth:`take` that may block, without side effects, since the call may end before it."""
        if self._upscales and self.settings.fallback is None:
            raise ServerRefused(
                "Your own servers do not upscale, and no hosted provider was named.",
                user_action="Name one: Client(url, fallback=[Replicate()]).",
            )
        options = parse_options(self._given)
        take = shrink if self.settings.fit and not self._upscales else _encoded
        return options, take(
            image,
            media_type=media_type,
            limits=UPSCALE_LIMITS if self._upscales else self.settings.limits,
            verify=self.settings.verify,
            strict=self.settings.strict,
        )

    def taken(self, options: CutOptions, fitted: Fitted) -> None:
        """Take the result of :meth:`read`."""
        self._fitted = fitted
        self._options = options
        self._sent = fitted.options(self._given)
        self.options = options if fitted.original is None else parse_options(self._sent)
        self._observation.sent(len(self.data), options)

    @property
    def data(self) -> bytes:
        """The encoded file that is sent."""
        return self._fitted.picture.data

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self._fitted.picture.header.format]

    @property
    def needs_work(self) -> bool:
        """Whether the result takes long enough for a thread."""
        return self._fitted.original is not None

    def find_cached(self) -> bool:
        """Whether the cache has the answer; reads from disk."""
        cache = self.settings.cache
        found = None if cache is None else cache.get(self._key(cache))
        if found is None:
            return False
        try:
            self._parsed = self._read(found, self.outputs)
        except InferenceError:
            return False
        self._origin = replace(self._origin, from_cache=True, requests=0)
        return True

    def request(self, outputs: tuple[str, ...], turn: Deadline) -> InferRequest:
        """The request to an own server, with the deadline `turn`."""
        return InferRequest(
            model=PIPELINE,
            image=self.data,
            outputs=outputs,
            parameters=to_parameters(self._sent),
            request_id=self.request_id,
            timeout_s=turn.left_s,
            headers=self._observation.headers(),
        )

    def retries(self, turn: Deadline) -> Retries:
        return Retries(turn, self.settings.retry, self.settings.budget)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count failed requests to own servers in the block."""
        try:
            yield
        except CutawayError as error:
            self._requests += requests_of(error)
            raise

    def answered(self, answer: Answer, outputs: tuple[str, ...]) -> Mapping[str, Tensor]:
        """Take an own server's answer, and count its requests.

        Raises:
            InferenceError: the answer is malformed. It is not cached, and the fallback may serve.
        """
        self._requests += answer.requests
        self._url = answer.url
        parsed = self._read(answer.outputs, outputs)
        if outputs == self.outputs:
            self._parsed = parsed
        return answer.outputs

    def served(self, served: Served[Any]) -> None:
        """Take the answer of the tier that served.

        Raises:
            InferenceError: a hosted model's answer is malformed.
        """
        if served.tier > 1:
            self._parsed = self._read(served.value, self.outputs)
        self._outputs = served.value
        self._set_origin(served)

    def store(self) -> None:
        """Cache the answer of an own server; writes to disk."""
        cache = self.settings.cache
        if cache is not None and self._origin.tier == 1 and not self._origin.from_cache:
            cache.put(self._key(cache), self._outputs)

    def cut_result(self, *, restore: bool = True) -> CutResult:
        """See :meth:`detection`."""
        found = self.detection(restore=restore)
        assert isinstance(found, CutResult)
        return found

    def detection(self, *, restore: bool = True) -> Detection:
        """The result; `restore` scales that of a smaller copy to the original's size.

        Raises:
            InferenceError: a cut-out of a smaller copy cannot be decoded.
        """
        assert self._parsed is not None
        found = self._parsed
        if warnings := self._fitted.picture.warnings:
            found = replace(found, report=replace(found.report, warnings=(*warnings, *found.report.warnings)))
        if restore:
            found = self._fitted.restore(found, self._options)
        origin = replace(self._origin, elapsed_ms=self.deadline.elapsed_s * 1000)
        found = replace(found, origin=origin)
        self._observation.served(
            ServedFacts(
                provider=origin.provider,
                tier=origin.tier,
                url=origin.url,
                requests=origin.requests,
                from_cache=origin.from_cache,
                tried=origin.tried,
                n_bytes=sum(map(len, found.images)) if isinstance(found, CutResult) else 0,
                stage_ms=found.timings_ms,
                people=len(found.report.people),
                warnings=tuple(warning.code for warning in found.warnings),
            )
        )
        return found

    def upscaled(self, served: Served[Upscaled]) -> UpscaleResult:
        """The result of a hosted upscaling."""
        self._set_origin(served)
        value, origin = served.value, replace(self._origin, requests=0)
        self._observation.served(
            ServedFacts(
                provider=origin.provider,
                tier=origin.tier,
                requests=value.requests,
                tried=origin.tried,
                n_bytes=len(value.data),
            )
        )
        return UpscaleResult(
            data=value.data,
            media_type=value.media_type,
            width_px=value.width_px,
            height_px=value.height_px,
            model=value.model,
            licence=value.licence,
            cost=value.cost,
            origin=replace(origin, elapsed_ms=self.deadline.elapsed_s * 1000),
        )

    def _read(self, outputs: Mapping[str, Tensor], asked: tuple[str, ...]) -> Detection:
        read = read_cut if asked == CUT_OUTPUTS else read_detection
        return read(outputs, self._origin, self._fitted.picture.header)

    def _set_origin(self, served: Served[Any]) -> None:
        self._origin = replace(
            self._origin,
            provider=served.provider,
            tier=served.tier,
            url=self._url if served.tier == 1 else "",
            tried=served.tried,
            requests=self._requests,
        )

    def _key(self, cache: ResultCache) -> str:
        return cache.key(self.data, self.options, self.outputs, self.settings.urls)


def _encoded(image: ImageInput, **arguments: Any) -> Fitted:
    return Fitted(encode(image, **arguments))


def checked_id(request_id: str) -> str:
    if not 0 < len(request_id) <= MAX_REQUEST_ID_CHARS or not (request_id.isascii() and request_id.isprintable()):
        raise ValueError(f"a request id has 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters")
    return request_id
