"""What every hosted provider shares: its address, token, time, retries, and the sending of requests."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urljoin

from cutaway.addresses import origin_of
from cutaway.cancel import Cancel
from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InvalidOption, RateLimitExceeded
from cutaway.contract.headers import check_picture
from cutaway.providers import failures
from cutaway.providers.answers import Matte, Upscaled, alpha_of, invalid, upscaled_size
from cutaway.providers.errors import InvalidAnswer, LicenceNotAccepted
from cutaway.providers.exchange import Exchange
from cutaway.providers.guard import check_base_url, check_target
from cutaway.providers.model import Model, Secret
from cutaway.providers.steps import Pause, Request, Response, Steps, Work
from cutaway.resilience import Deadline, Retries, RetryBudget, RetryPolicy

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 3
MAX_JSON_BYTES = limits.MIB


@dataclass
class Call:
    """One call of a provider: its time, its retries and what it has sent so far.

    Attributes:
        overall: all the time that there is, from when the call began.
        deadline: the provider's own timeout within it.
    """

    overall: Deadline
    deadline: Deadline
    retries: Retries
    model: Model
    scale: int = 1
    requests: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Provider(ABC):
    """A hosted model behind an HTTP API. Subclasses say what to send and what the answers mean.

    Attributes:
        name: "huggingface", "replicate" or "space".
        tier: 2 to 4, as the documentation numbers them.
        cost: what a picture costs, in words.
        base_url: where requests go.
        timeout_s: seconds that one call may take; the overall deadline may be shorter.

    Objects are safe to share between threads and event loops.
    """

    name: ClassVar[str]
    tier: ClassVar[int]
    cost: ClassVar[str]
    token_variables: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        base_url: str,
        model: Model,
        token: str | None = None,
        timeout_s: float | None = None,
        accept_noncommercial: bool = False,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = check_base_url(base_url)
        self.model = model
        self.timeout_s = limits.TIER_TIMEOUTS_S[self.name] if timeout_s is None else float(timeout_s)
        self._accept_noncommercial = accept_noncommercial
        self._check_licence(model)
        self._token = Secret(token or self._token_of_environment(), self.name)
        self._policy = retry or RetryPolicy()
        self._budget = RetryBudget()
        self._upscalers: dict[int, Model] = {}
        self._own = origin_of(self.base_url)
        self._exchange = Exchange(self.name, self._own, transport=transport, async_transport=async_transport)

    # ------------------------------------------------------------------------------------ what callers use

    @property
    def licence(self) -> str:
        """The licence of the matting model's weights, in words."""
        return self.model.licence

    @property
    def mattes(self) -> bool:
        """Whether it was set up for mattes."""
        return True

    @property
    def scales(self) -> tuple[int, ...]:
        """The factors by which it can upscale; none for a provider that only mattes."""
        return tuple(sorted(self._upscalers))

    def matte(self, data: bytes, media_type: str, deadline: Deadline, cancel: Cancel | None = None) -> Matte:
        """The alpha of a picture.

        Args:
            data: an encoded picture, upright and within the input limits.
            media_type: what it is ("image/jpeg").
            deadline: overall; the provider's own `timeout_s` counts too, but not while a model is loading.
            cancel: gives it up from another thread.

        Raises:
            InputError: the provider says that the picture is at fault, so no other one needs to be asked.
            RequestCancelled: by `cancel`.
            ServerUnavailable, ProcessingTimeout, InferenceError: anything else; see :mod:`cutaway.providers.errors`.
        """
        return self._exchange.run(self._matte(data, media_type, deadline), cancel)

    async def matte_async(self, data: bytes, media_type: str, deadline: Deadline) -> Matte:
        """The same as :meth:`matte` with asyncio."""
        return await self._exchange.run_async(self._matte(data, media_type, deadline))

    def upscale(
        self, data: bytes, media_type: str, scale: int, deadline: Deadline, cancel: Cancel | None = None
    ) -> Upscaled:
        """The picture with `scale` times as many pixels along each side.

        Raises:
            InvalidOption: the scale is none of :attr:`scales`.
            ResolutionTooLarge: the picture is over 1440p.
            Others as :meth:`matte`.
        """
        return self._exchange.run(self._upscale(data, media_type, scale, deadline), cancel)

    async def upscale_async(self, data: bytes, media_type: str, scale: int, deadline: Deadline) -> Upscaled:
        """The same as :meth:`upscale` with asyncio."""
        return await self._exchange.run_async(self._upscale(data, media_type, scale, deadline))

    def close(self) -> None:
        """Close idle connections, and those in use when they become idle; the object stays usable."""
        self._exchange.close()

    def __repr__(self) -> str:
        token = "set" if self._token else "none"
        return (
            f"{type(self).__name__}(base_url={self.base_url!r}, model={self.model.name!r}, "
            f"timeout_s={self.timeout_s:g}, token={token})"
        )

    # ---------------------------------------------------------------------------------- what subclasses say

    @abstractmethod
    def _matte_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        """Yield requests; return an encoded mask or cut-out."""

    @abstractmethod
    def _upscale_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        """Yield requests; return the picture enlarged by `call.scale`, encoded."""

    def _take_upscalers(self, upscalers: Mapping[int, Model]) -> None:
        """Which model upscales by which factor."""
        for model in upscalers.values():
            self._check_licence(model)
        self._upscalers = {scale: model for scale, model in upscalers.items() if scale in limits.UPSCALE_SCALES}

    # --------------------------------------------------------------------------------------------- the work

    def _matte(self, data: bytes, media_type: str, deadline: Deadline) -> Steps[Matte]:
        header = check_picture(data, media_type)
        call = self._call(deadline, self.model)
        answer = yield from self._matte_steps(call, data, media_type)
        size_wh = header.width_px, header.height_px
        # The answer is there and paid for: only the overall time can make it worthless.
        alpha = yield Work(
            lambda check: alpha_of(answer, size_wh, self.name, check), call.overall, f"reading {self.name}'s answer"
        )
        call.retries.budget.succeeded()
        return Matte(
            alpha=alpha,
            provider=self.name,
            model=call.model.name,
            licence=call.model.licence,
            cost=self.cost,
            requests=call.requests,
            elapsed_ms=call.overall.elapsed_s * 1000,
            details=call.details,
        )

    def _upscale(self, data: bytes, media_type: str, scale: int, deadline: Deadline) -> Steps[Upscaled]:
        if scale not in self.scales:
            allowed = ", ".join(map(str, self.scales)) or "none: this provider does not upscale"
            raise InvalidOption(
                f"{self.name} does not upscale by {scale!r}: allowed is {allowed}.",
                details={"name": "scale", "value": scale, "allowed": allowed},
            )
        header = check_picture(data, media_type, limits=limits.UPSCALE_LIMITS)
        call = self._call(deadline, self._upscalers[scale], scale)
        answer = yield from self._upscale_steps(call, data, media_type)
        larger = upscaled_size(answer, (header.width_px, header.height_px), scale, self.name)
        call.retries.budget.succeeded()
        return Upscaled(
            data=answer,
            media_type=larger.media_type,
            width_px=larger.width_px,
            height_px=larger.height_px,
            provider=self.name,
            model=call.model.name,
            licence=call.model.licence,
            cost=self.cost,
            requests=call.requests,
            elapsed_ms=call.overall.elapsed_s * 1000,
            details=call.details,
        )

    def _call(self, deadline: Deadline, model: Model, scale: int = 1) -> Call:
        overall, tier = deadline.capped(deadline.left_s), deadline.capped(self.timeout_s)
        return Call(overall, tier, Retries(tier, self._policy, self._budget), model, scale)

    def _token_of_environment(self) -> str | None:
        found = (os.environ.get(name, "").strip() for name in self.token_variables)
        return next((value for value in found if value), None)

    def _check_licence(self, model: Model) -> None:
        if not model.commercial and not self._accept_noncommercial:
            raise LicenceNotAccepted(
                f"The weights of {model.name} may not be used commercially ({model.licence}). "
                "Pass accept_noncommercial=True if your use is not commercial, or if you hold a licence.",
                details={
                    "name": "accept_noncommercial",
                    "value": False,
                    "allowed": "true",
                    "model": model.name,
                    "licence": model.licence,
                },
            )

    # ------------------------------------------------------------------------------------- sending requests

    def _request(
        self,
        call: Call,
        method: str,
        path_or_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        form: Any = None,
        body: bytes = b"",
        max_bytes: int = limits.HOSTED_MAX_ANSWER_BYTES,
        deadline: Deadline | None = None,
        **more: Any,
    ) -> Request:
        """A request; the token goes along where it goes to the provider's own address, and nowhere else."""
        url = path_or_url if "://" in path_or_url else self.base_url + path_or_url
        check_target(url, self._own, self.name)
        sent = dict(headers or {})
        if origin_of(url) == self._own:
            sent.update(self._token.bearer())
        if form is not None:
            sent["Content-Type"] = "application/json"
            body = json.dumps(form).encode()
        return Request(method, url, deadline or call.deadline, sent, body, max_bytes, **more)

    def _once(self, call: Call, request: Request) -> Steps[Response]:
        """Send it and count it.

        Raises:
            CutawayError: it failed on the way, or the call has sent too much already.
        """
        if call.requests >= limits.HOSTED_MAX_REQUESTS:
            raise call.deadline.exceeded(self.name)
        call.requests += 1
        response: Response = yield request
        return response

    def _send(self, call: Call, request: Request, *, repeatable: bool = True) -> Steps[Response]:
        """Send it, again where that can help, until the answer is a success.

        Args:
            repeatable: False for what costs money each time: then it is sent again only where it certainly was not
                accepted, which is when no connection came about or the rate was limited.

        Raises:
            CutawayError: the last attempt's failure.
        """
        while True:
            try:
                response = yield from self._once(call, request)
                failure = self._failure_of(response)
            except CutawayError as error:
                failure = error
            if failure is None:
                return response
            unsent = isinstance(failure, RateLimitExceeded) or bool(failure.details.get("unsent"))
            wait = call.retries.delay_s(failure) if repeatable or unsent else None
            if wait is None:
                raise failure
            yield Pause(wait)

    def _fetch(self, call: Call, url: str, media_types: tuple[str, ...] = ("image/",)) -> Steps[bytes]:
        """Download a file that an answer points to, through at most three redirects, each checked.

        Raises:
            InvalidAnswer: it leads where nobody may go, or is no picture.
        """
        for _ in range(MAX_REDIRECTS + 1):
            response = yield from self._send(call, self._request(call, "GET", url))
            if not 300 <= response.status < 400:
                break
            url = urljoin(url, response.headers.get("location", ""))
        else:
            raise self._invalid("more redirects than are followed")
        if not response.media_type.startswith((*media_types, "application/octet-stream", "binary/octet-stream")):
            raise self._invalid(f"a file of type {response.media_type[:50] or 'unknown'!r} instead of a picture")
        return response.body

    def _failure_of(self, response: Response) -> CutawayError | None:
        """The typed error of an answer, or None where it is a success or a redirect of a download."""
        return failures.of_answer(response, self.name, self._token, self._advice)

    def _model_failure(self, said: object) -> CutawayError:
        """The error for a model that ran and failed, by its own words."""
        return failures.of_model(said, self.name, self._token)

    def _advice(self, status: int) -> str:
        """What a caller can do about a refusal."""
        if status == 401 and not self._token and self.token_variables:
            return f"Set {self.token_variables[0]} to a token of {self.name}."
        if status in (401, 403):
            return f"Check that the token for {self.name} is valid and allows this model."
        if status == 402:
            return f"The account at {self.name} has no credit left."
        if status in (404, 410):
            return "The model or the address is not served any more: check model and base_url."
        return "Check the model and its inputs."

    def _invalid(self, what: str) -> InvalidAnswer:
        return invalid(self.name, what)
