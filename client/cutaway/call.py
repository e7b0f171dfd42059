"""The state of one call: its deadline, picture and result. Nothing here waits for a network."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError
from cutaway.contract.limits import INPUT_LIMITS, MEDIA_TYPES, UPSCALE_LIMITS
from cutaway.contract.options import CutOptions, OptionKeywords, WhoKeywords, parse_options, to_parameters
from cutaway.downscale import Fitted, downscale
from cutaway.inputs import ImageInput, encode
from cutaway.observe import Observer, ServedFacts, Unobserved, observed
from cutaway.resilience import Deadline, RetryBudget, RetryPolicy
from cutaway.result import CUT_OUTPUTS, DETECTION_OUTPUTS, Detection, Origin, UpscaleResult, read_cut, read_detection
from cutaway.servers import PIPELINE, Answer
from cutaway.transports.base import InferRequest, Tensor, Transport, parse_address
from cutaway.transports.connection import Connection, Tls

if TYPE_CHECKING:
    from cutaway.cache import ResultCache
    from cutaway.composite import Placement
    from cutaway.fallback import Fallback
    from cutaway.fallback.answers import Upscaled
    from cutaway.fallback.base import Provider
    from cutaway.fallback.chain import Served

TOKEN_VARIABLE = "CUTAWAY_TOKEN"  # noqa: S105 (a variable's name)
API_KEY_VARIABLE = "CUTAWAY_API_KEY"
MAX_REQUEST_ID_CHARS = 128


class ServerKeywords(TypedDict, total=False):
    """The keyword arguments of clients and streams."""

    token: str | None
    api_key: str | None
    headers: Mapping[str, str] | None
    tls: Tls | None
    transport: Transport | None


class ClientKeywords(ServerKeywords, total=False):
    """The keyword arguments of :class:`cutaway.Client` and :class:`cutaway.AsyncClient`; see there."""

    timeout_s: float | None
    retry: RetryPolicy | None
    fallback: Fallback | Sequence[Provider]
    cache: ResultCache | None
    observers: Sequence[Observer]
    strict: bool
    fit: bool
    max_decompression_ratio: float | None


class CallKeywords(TypedDict, total=False):
    """The keyword arguments of every call with a picture."""

    media_type: str | None
    timeout_s: float | None
    request_id: str | None


class CutKeywords(CallKeywords, OptionKeywords, total=False):
    """The keyword arguments of :meth:`cutaway.Client.cut` and `detect`."""


class CompositeKeywords(CallKeywords, WhoKeywords, total=False):
    """The keyword arguments of :meth:`cutaway.Client.composite`."""

    place: Placement | Sequence[Placement] | None
    match_colour: float
    output: Literal["png", "webp", "jpeg"]
    quality: int
    size_px: tuple[int, int] | None


class Settings:
    """What a client was given, checked; ValueError where an address, a header or a number makes no sense."""

    def __init__(self, urls: str | Sequence[str], **given: Unpack[ClientKeywords]) -> None:
        from cutaway.fallback import Fallback

        if unknown := given.keys() - ClientKeywords.__annotations__:
            raise TypeError(f"a client has no argument {min(unknown)!r}")
        self.given: tuple[Any, dict[str, Any]] = urls, dict(given)
        headers = {name.lower(): value for name, value in (given.get("headers") or {}).items()}
        if token := given.get("token") or os.environ.get(TOKEN_VARIABLE):
            headers["authorization"] = f"Bearer {token}"
        if api_key := given.get("api_key") or os.environ.get(API_KEY_VARIABLE):
            headers["x-api-key"] = api_key
        tls, several = given.get("tls"), [urls] if isinstance(urls, str) else urls
        self.connections = [Connection(parse_address(url), headers, tls) for url in several]
        if not self.connections:
            raise ValueError("a client needs the address of at least one server")
        self.urls = tuple(str(connection.address) for connection in self.connections)
        self.transport = given.get("transport")
        self.retry, self.budget = given.get("retry") or RetryPolicy(), RetryBudget()
        tiers = given.get("fallback") or ()
        self.fallback = tiers if isinstance(tiers, Fallback) else Fallback(tiers) if tiers else None
        self.timeout_s = limits.FALLBACK_TIMEOUT_S if self.fallback else limits.PROCESSING_TIMEOUT_S
        self.timeout_s = self.deadline(given.get("timeout_s")).budget_s
        self.cache, self.observers = given.get("cache"), tuple(given.get("observers", ()))
        self.strict, self.fit = bool(given.get("strict")), bool(given.get("fit"))
        self.limits = INPUT_LIMITS
        if (ratio := given.get("max_decompression_ratio")) is not None:
            if not ratio > 0:
                raise ValueError("max_decompression_ratio has to be above 0")
            self.limits = replace(INPUT_LIMITS, max_decompression_ratio=ratio)

    def deadline(self, timeout_s: float | None) -> Deadline:
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise ValueError(f"a timeout is a number of seconds above 0, not {timeout_s}")
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)


@contextmanager
def begin(settings: Settings, operation: str, given: Mapping[str, Any]) -> Iterator[Call]:
    """A "cut", "detect" or "upscale", observed; its id is set on errors. ValueError for an invalid timeout or id."""
    call = Call(settings, operation, given)
    with observed(settings.observers, operation, call.request_id) as call.observation:
        try:
            yield call
        except CutawayError as error:
            error.request_id = call.request_id
            if call.requests:
                error.details["requests"] = call.requests
            raise


class Call:
    """One call, from :func:`begin`."""

    observation: Unobserved

    def __init__(self, settings: Settings, operation: str, given: Mapping[str, Any]) -> None:
        self.settings, self._given = settings, dict(given)
        self._media_type = self._given.pop("media_type", None)
        self.deadline = settings.deadline(self._given.pop("timeout_s", None))
        given_id = self._given.pop("request_id", None)
        self.request_id = request_id = uuid.uuid4().hex if given_id is None else given_id
        if not (0 < len(request_id) <= MAX_REQUEST_ID_CHARS and request_id.isascii() and request_id.isprintable()):
            raise ValueError(f"a request id has 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters")
        self._upscales = operation == "upscale"
        self.outputs = CUT_OUTPUTS if operation == "cut" else DETECTION_OUTPUTS
        self.requests = 0
        self._url = ""
        self._parsed: Detection | None = None

    def read(self, image: ImageInput) -> tuple[CutOptions, Fitted]:
        """Check the options, and read or encode the picture, which may block: without side effects, since the call may
        end before it. The errors are those of :func:`cutaway.inputs.encode`."""
        options, settings = parse_options(self._given), self.settings
        bounds = UPSCALE_LIMITS if self._upscales else settings.limits
        checks: dict[str, Any] = {"media_type": self._media_type, "limits": bounds, "strict": settings.strict}
        fits = settings.fit and not self._upscales
        return options, downscale(image, **checks) if fits else Fitted(encode(image, **checks))

    def take(self, options: CutOptions, fitted: Fitted) -> None:
        """Take the result of :meth:`read`."""
        self._fitted, self._options = fitted, options
        self._sent = fitted.options(self._given)
        self.options = options if fitted.original is None else parse_options(self._sent)
        self.data, self.media_type = fitted.picture.data, MEDIA_TYPES[fitted.picture.header.format]
        self.restores = fitted.original is not None
        self.observation.sent(len(self.data), options)

    def request(self, outputs: tuple[str, ...], turn: Deadline) -> InferRequest:
        """The request to an own server, with the deadline `turn`."""
        parameters, headers = to_parameters(self._sent), self.observation.headers()
        return InferRequest(PIPELINE, self.data, outputs, parameters, self.request_id, turn.left_s, headers)

    def answered(self, answer: Answer, outputs: tuple[str, ...]) -> Mapping[str, Tensor]:
        """Take an own server's answer. InferenceError where it is malformed: the fallback may serve."""
        self.requests += answer.requests
        self._url = answer.url
        parsed = self._read(answer.outputs, outputs)
        if outputs == self.outputs:
            self._parsed = parsed
        return answer.outputs

    def served(self, served: Served[Mapping[str, Tensor]], *, from_cache: bool = False) -> None:
        """Take the answer of the tier that served, or of the cache. InferenceError where it is malformed."""
        if served.tier > 1 or from_cache:
            self._parsed = self._read(served.value, self.outputs)
        self._served, self._from_cache = served, from_cache

    def result(self, *, restore: bool = True) -> Detection:
        """The CutResult or Detection; `restore` scales that of a smaller copy to the original's size."""
        assert self._parsed is not None
        found = self._parsed
        if warnings := self._fitted.picture.warnings:
            found = replace(found, report=replace(found.report, warnings=(*warnings, *found.report.warnings)))
        if restore:
            found = self._fitted.restore(found, self._options)
        found = replace(found, origin=self._origin(self._served, self._from_cache))
        n_bytes, codes = sum(map(len, getattr(found, "images", ()))), tuple(each.code for each in found.warnings)
        people = len(found.report.people)
        self._report(found.origin, n_bytes, stage_ms=found.timings_ms, people=people, warnings=codes)
        return found

    def upscaled(self, served: Served[Upscaled]) -> UpscaleResult:
        """The result of a hosted upscaling."""
        origin, value = self._origin(served), served.value
        self._report(replace(origin, requests=value.requests), len(value.data))
        same = ("data", "media_type", "width_px", "height_px", "model", "licence", "cost")
        return UpscaleResult(**{name: getattr(value, name) for name in same}, origin=origin)

    def _read(self, outputs: Mapping[str, Tensor], asked: tuple[str, ...]) -> Detection:
        read = read_cut if asked == CUT_OUTPUTS else read_detection
        return read(outputs, Origin("triton", self.request_id, 0.0), self._fitted.picture.header)

    def _origin(self, served: Served[Any], from_cache: bool = False) -> Origin:
        url, elapsed_ms = self._url if served.tier == 1 else "", self.deadline.elapsed_s * 1000
        by = (served.provider, self.request_id, elapsed_ms, served.tier, url, served.tried)
        return Origin(*by, self.requests, from_cache)

    def _report(self, origin: Origin, n_bytes: int, **more: Any) -> None:
        self.observation.served(ServedFacts(**vars(origin), n_bytes=n_bytes, **more))
