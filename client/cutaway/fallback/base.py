"""The base class of hosted providers: model and licence, token and keywords, and the result of a call."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, TypedDict, Unpack

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CorruptImage, CutawayError, invalid_option
from cutaway.contract.headers import check_picture
from cutaway.fallback import answers
from cutaway.fallback.answers import Matte, ProviderRefused, ProviderUnavailable, Upscaled, form_of
from cutaway.fallback.requests import Request, Secret, check_base_url
from cutaway.resilience import Deadline, RetryBudget, RetryPolicy, parse_retry_after

QUOTED_CHARS = 200  # of a provider's own message
UNKNOWN_LICENCE = "not known to Cutaway: see the model's page"
BRIA_LICENCE = "CC BY-NC 4.0 or Bria's licence: not for commercial use without one"

_BRIA = re.compile(r"briaai/|fal-ai/bria/|.*rmbg", re.IGNORECASE)  # its weights' names, whoever serves them


@dataclass(frozen=True)
class Model:
    """A hosted model: its `name` at its provider, the `licence` of its weights in words, whether that allows
    `commercial` use, and the provider's `inputs` beside the picture."""

    name: str
    licence: str = UNKNOWN_LICENCE
    commercial: bool = True
    inputs: Mapping[str, Any] = field(default_factory=dict)


def model_of(model: str | Model, known: Mapping[str, Model] | None = None) -> Model:
    """The model of that name, in whatever case and with a version or not; Bria's weights have their licence always."""
    if isinstance(model, str):
        name = model.strip()
        found = (known or {}).get(name.partition(":")[0].lower(), Model(name))
        model = replace(found, name=name) if ":" in name else found
    if model.licence == UNKNOWN_LICENCE and _BRIA.match(model.name):
        model = replace(model, licence=BRIA_LICENCE, commercial=False)
    return model


class ProviderKeywords(TypedDict, total=False):
    """The keyword arguments of every provider; see :class:`Provider`."""

    base_url: str | None
    token: str | None
    timeout_s: float | None
    accept_noncommercial: bool
    retry: RetryPolicy | None
    transport: httpx.AsyncBaseTransport | None


class Provider(ABC):
    """A hosted model behind an HTTP API; safe to share between threads and event loops.

    Args:
        base_url: where requests go, instead of the provider's own address (an endpoint of your own, a test).
        token: instead of the environment's; an object with one cannot be pickled.
        timeout_s: seconds for one call, within the overall deadline.
        accept_noncommercial: you may use weights that are not for commercial use, else LicenceNotAccepted is raised.
        transport: an asynchronous httpx transport, for a test or a proxy that the environment does not name.
    """

    name: ClassVar[str]
    tier: ClassVar[int]  # 2 to 4
    cost: ClassVar[str]  # of a picture, in words
    default_url: ClassVar[str] = ""
    gone: ClassVar[str] = "The model or the address is not served any more: check model and base_url."
    token_variables: ClassVar[tuple[str, ...]] = ()
    delivery_hosts: ClassVar[tuple[str, ...]] = ()  # of its files, beside its own origin, with their subdomains
    mattes = True

    def __init__(self, model: Model, upscalers: Mapping[int, Model], **keywords: Unpack[ProviderKeywords]) -> None:
        self.model, self.licence = model, model.licence
        self.timeout_s = float(keywords.get("timeout_s") or limits.TIER_TIMEOUTS_S[self.name])
        self._upscalers, self.scales = upscalers, tuple(each for each in limits.UPSCALE_SCALES if each in upscalers)
        for each in (model, *upscalers.values()):
            if not each.commercial and not keywords.get("accept_noncommercial"):
                details = {"name": "accept_noncommercial", "value": False, "allowed": "true", "model": each.name}
                raise answers.LicenceNotAccepted(
                    f"The weights of {each.name} may not be used commercially ({each.licence}). "
                    "Pass accept_noncommercial=True if your use is not commercial, or if you hold a licence.",
                    details=details | {"licence": each.licence},
                )
        self.token = Secret(keywords.get("token"), self.name, self.token_variables)
        self.base_url = (keywords.get("base_url") or self.default_url).rstrip("/")
        self.origin = check_base_url(self.base_url, token=bool(self.token))
        self.policy, self.budget = keywords.get("retry") or RetryPolicy(), RetryBudget()
        self.transport = keywords.get("transport")

    def __repr__(self) -> str:
        what = f"base_url={self.base_url!r}, model={self.model.name!r}, timeout_s={self.timeout_s:g}"
        return f"{type(self).__name__}({what}, token={self.token!r})"

    async def matte(self, data: bytes, media_type: str, deadline: Deadline) -> Matte:
        """The alpha of an encoded picture of that media type, upright and within the input limits.

        Raises:
            InputError: the provider refuses the picture, which others would refuse, too.
            ServerUnavailable, ProcessingTimeout, InferenceError: anything else; see :mod:`cutaway.fallback.answers`.
        """
        header = check_picture(data, media_type)
        async with Request(self, self.model, deadline) as request:
            answer = await self._serve(request, data, media_type)
        # The answer is there and paid for, so that only the overall deadline counts from here.
        read = partial(answers.alpha_of, answer, (header.width_px, header.height_px), self.name)
        alpha = await answers.run_locally(f"reading {self.name}'s answer", request.overall, read)
        return Matte(alpha=alpha, **self._facts(request))

    async def upscale(self, data: bytes, media_type: str, scale: int, deadline: Deadline) -> Upscaled:
        """The picture, of at most 1440p, with `scale` times as many pixels along each side; errors as :meth:`matte`."""
        if scale not in self.scales:
            allowed = ", ".join(map(str, self.scales)) or f"none: {self.name} does not upscale"
            raise invalid_option("scale", scale, allowed)
        header = check_picture(data, media_type, limits=limits.UPSCALE_LIMITS)
        async with Request(self, self._upscalers[scale], deadline, scale) as request:
            answer = await self._serve(request, data, media_type)
        larger = answers.upscaled_header(answer, (header.width_px, header.height_px), scale, self.name)
        facts = self._facts(request) | {"width_px": larger.width_px, "height_px": larger.height_px}
        return Upscaled(data=answer, media_type=larger.media_type, **facts)

    @abstractmethod
    async def _serve(self, request: Request, data: bytes, kind: str) -> bytes:
        """An encoded mask or cut-out of a picture of this media type; or the picture enlarged by `request.scale`."""

    def failure_of(self, response: httpx.Response) -> CutawayError | None:
        """The typed error of an answer, or None for a success or a redirect."""
        denied = "Check that the token is valid and allows this model."
        if self.token_variables and not self.token:
            denied = f"Set {self.token_variables[0]} to a token of {self.name}."
        advice = {401: denied, 402: "The account has no credit left.", 403: denied, 404: self.gone, 410: self.gone}
        status, form = response.status_code, form_of(response)
        if status < 400:
            return None
        words = next((form[key] for key in ("detail", "error", "message", "title") if form.get(key)), None)
        if words is None and "html" not in response.headers.get("content-type", ""):
            words = response.content[:2000].decode("utf-8", "replace")
        said = self._quoted(words)
        wait_s = parse_retry_after(response.headers.get("retry-after", str(form.get("retry_after"))))
        details: dict[str, Any] = {"provider": self.name, "status": status}
        if wait_s is not None:
            details["retry_after_seconds"] = wait_s
        kind = answers.BY_STATUS.get(status, ProviderUnavailable if status >= 500 else ProviderRefused)
        if status in (400, 422) and answers.ABOUT_THE_PICTURE.search(said):
            kind = CorruptImage
        action = advice.get(status, "Check the model and its inputs.") if kind is ProviderRefused else None
        return kind(f"{self.name} answered {status}{said}.", details=details, retry_after=wait_s, user_action=action)

    def _model_failure(self, words: object) -> CutawayError:
        """The error for a model that ran and failed, by its message."""
        if answers.ABOUT_THE_PICTURE.search(said := self._quoted(words)):
            return CorruptImage(f"{self.name} cannot read the picture{said}.", details={"provider": self.name})
        return answers.invalid(self.name, f"a model that failed{said}")

    def _quoted(self, words: object) -> str:
        text = words if isinstance(words, str) else "" if words is None else json.dumps(words, default=str)
        said = self.token.scrub(" ".join(text.split()))[:QUOTED_CHARS].rstrip(". ")
        return f": {said}" if said else ""

    def _facts(self, request: Request) -> dict[str, Any]:
        """The fields that results of all calls have."""
        self.budget.succeeded()
        model, elapsed_ms = request.model, request.overall.elapsed_s * 1000
        facts = {"provider": self.name, "model": model.name, "licence": model.licence, "cost": self.cost}
        return facts | {"requests": request.requests, "elapsed_ms": elapsed_ms, "details": request.details}
