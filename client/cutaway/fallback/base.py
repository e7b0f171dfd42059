"""The base class of hosted providers: settings, licence, token, and the result of a call."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, Unpack

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, invalid_option
from cutaway.contract.headers import check_picture
from cutaway.fallback import errors
from cutaway.fallback.answers import Matte, Upscaled, alpha_of, upscaled_size
from cutaway.fallback.chain import in_thread
from cutaway.fallback.model import Model, Secret
from cutaway.fallback.requests import Call, check_base_url
from cutaway.resilience import Deadline, RetryBudget, RetryPolicy

if TYPE_CHECKING:
    from typing import Self

    import httpx


class Settings(TypedDict, total=False):
    """Keyword arguments of every provider.

    - base_url: where requests go, instead of the provider's own address (an endpoint of your own, a test).
    - token: instead of the environment's.
    - timeout_s: seconds for one call, within the overall deadline.
    - accept_noncommercial: you may use weights that are not for commercial use.
    - retry: the retry policy of requests.
    - transport: an asynchronous httpx transport, for a test or a proxy that the environment does not name.
    """

    base_url: str | None
    token: str | None
    timeout_s: float | None
    accept_noncommercial: bool
    retry: RetryPolicy | None
    transport: httpx.AsyncBaseTransport | None


class Provider(ABC):
    """A hosted model behind an HTTP API. Subclasses prepare requests and parse answers.

    Attributes:
        name: "huggingface", "replicate" or "space".
        tier: 2 to 4, as the documentation numbers them.
        cost: what a picture costs, in words.
        delivery_hosts: hosts of its files beside its own origin, with their subdomains.

    Objects are safe to share between threads and event loops. They can be pickled, unless a token was passed.
    """

    name: ClassVar[str]
    tier: ClassVar[int]
    cost: ClassVar[str]
    default_url: ClassVar[str] = ""
    token_variables: ClassVar[tuple[str, ...]] = ()
    delivery_hosts: ClassVar[tuple[str, ...]] = ()
    _made_with: tuple[tuple[Any, ...], dict[str, Any] | None]

    def __new__(cls, *given: Any, **named: Any) -> Self:
        self = super().__new__(cls)
        self._made_with = given, named if not named.get("token") else None
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        given, named = self._made_with
        if named is None:
            raise TypeError("a token is not pickled: leave it to the environment of the other process")
        return _remade, (type(self), given, named)

    def __init__(self, model: Model, **settings: Unpack[Settings]) -> None:
        self.model = model
        self.timeout_s = float(settings.get("timeout_s") or limits.TIER_TIMEOUTS_S[self.name])
        self._accept_noncommercial = settings.get("accept_noncommercial", False)
        self._check_licence(model)
        found = (os.environ.get(name, "").strip() for name in self.token_variables)
        self._token = Secret(settings.get("token") or next(filter(None, found), ""), self.name)
        self.base_url = (settings.get("base_url") or self.default_url).rstrip("/")
        self._own = check_base_url(self.base_url, token=bool(self._token))
        self._policy = settings.get("retry") or RetryPolicy()
        self._budget = RetryBudget()
        self._upscalers: dict[int, Model] = {}
        self._transport = settings.get("transport")

    def __repr__(self) -> str:
        what = f"base_url={self.base_url!r}, model={self.model.name!r}, timeout_s={self.timeout_s:g}"
        return f"{type(self).__name__}({what}, token={self._token!r})"

    @property
    def licence(self) -> str:
        """The licence of the matting model's weights, in words."""
        return self.model.licence

    @property
    def mattes(self) -> bool:
        """Whether it serves mattes."""
        return True

    @property
    def scales(self) -> tuple[int, ...]:
        """The factors by which it can upscale; none for a provider that only mattes."""
        return tuple(sorted(self._upscalers))

    async def matte(self, data: bytes, media_type: str, deadline: Deadline) -> Matte:
        """The alpha of a picture.

        Args:
            data: an encoded picture, upright and within the input limits.
            media_type: its type ("image/jpeg").
            deadline: overall; the provider's own `timeout_s` counts too, but not while a model is loading.

        Raises:
            InputError: the provider refuses the picture, which others would refuse, too.
            ServerUnavailable, ProcessingTimeout, InferenceError: anything else; see :mod:`cutaway.fallback.errors`.
        """
        header = check_picture(data, media_type)
        async with Call(self, self.model, deadline) as call:
            answer = await self._matte(call, data, media_type)
        # The answer is there and paid for, so that only the overall deadline counts from here.
        doing, size_wh = f"reading {self.name}'s answer", (header.width_px, header.height_px)
        alpha = await in_thread(call.overall, doing, alpha_of, answer, size_wh, self.name)
        return Matte(alpha=alpha, **self._facts(call))

    async def upscale(self, data: bytes, media_type: str, scale: int, deadline: Deadline) -> Upscaled:
        """The picture with `scale` times as many pixels along each side.

        Raises:
            InvalidOption: the scale is none of :attr:`scales`.
            ResolutionTooLarge: the picture is over 1440p.
            Others as :meth:`matte`.
        """
        if scale not in self._upscalers:
            allowed = ", ".join(map(str, self.scales)) or f"none: {self.name} does not upscale"
            raise invalid_option("scale", scale, allowed)
        header = check_picture(data, media_type, limits=limits.UPSCALE_LIMITS)
        async with Call(self, self._upscalers[scale], deadline, scale) as call:
            answer = await self._upscale(call, data, media_type)
        larger = upscaled_size(answer, (header.width_px, header.height_px), scale, self.name)
        facts = self._facts(call) | {"width_px": larger.width_px, "height_px": larger.height_px}
        return Upscaled(data=answer, media_type=larger.media_type, **facts)

    # ---------------------------------------------------------------------------------- what subclasses implement

    @abstractmethod
    async def _matte(self, call: Call, data: bytes, media_type: str) -> bytes:
        """An encoded mask or cut-out."""

    @abstractmethod
    async def _upscale(self, call: Call, data: bytes, media_type: str) -> bytes:
        """The picture enlarged by `call.scale`, encoded."""

    def _failure_of(self, response: httpx.Response) -> CutawayError | None:
        """The typed error of an answer, or None where it is a success or a redirect of a download."""
        return errors.of_status(response, self.name, self._token, self._advice)

    def _advice(self, status: int) -> str:
        """The user action for a refused request."""
        if status == 401 and not self._token and self.token_variables:
            return f"Set {self.token_variables[0]} to a token of {self.name}."
        if status in (401, 403):
            return f"Check that the token for {self.name} is valid and allows this model."
        if status == 402:
            return f"The account at {self.name} has no credit left."
        if status in (404, 410):
            return "The model or the address is not served any more: check model and base_url."
        return "Check the model and its inputs."

    def _model_failure(self, said: object) -> CutawayError:
        return errors.of_model(said, self.name, self._token)

    def _take_upscalers(self, upscalers: Mapping[int, Model]) -> None:
        """Set the upscaling model of each factor."""
        for model in upscalers.values():
            self._check_licence(model)
        self._upscalers = {scale: model for scale, model in upscalers.items() if scale in limits.UPSCALE_SCALES}

    def _check_licence(self, model: Model) -> None:
        if not model.commercial and not self._accept_noncommercial:
            details = {"name": "accept_noncommercial", "value": False, "allowed": "true"}
            raise errors.LicenceNotAccepted(
                f"The weights of {model.name} may not be used commercially ({model.licence}). "
                "Pass accept_noncommercial=True if your use is not commercial, or if you hold a licence.",
                details=details | {"model": model.name, "licence": model.licence},
            )

    def _facts(self, call: Call) -> dict[str, Any]:
        """The fields that results of all calls have."""
        self._budget.succeeded()
        about = {"provider": self.name, "model": call.model.name, "licence": call.model.licence, "cost": self.cost}
        return about | {
            "requests": call.requests,
            "elapsed_ms": call.overall.elapsed_s * 1000,
            "details": call.details,
        }


def _remade(kind: type[Provider], given: tuple[Any, ...], named: dict[str, Any]) -> Provider:
    return kind(*given, **named)
