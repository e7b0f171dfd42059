"""Hugging Face: inference providers behind its router, and dedicated Inference Endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import quote, urlsplit

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InvalidOption, Overloaded
from cutaway.providers.answers import data_uri, decode_base64
from cutaway.providers.base import MAX_JSON_BYTES, Call, Provider
from cutaway.providers.model import BRIA_LICENCE, Model, by_name
from cutaway.providers.steps import Pause, Response, Steps
from cutaway.resilience import RetryPolicy

if TYPE_CHECKING:
    import httpx

Route = Literal["hf-inference", "fal-ai", "endpoint"]

ROUTER = "https://router.huggingface.co"
FAL_POLL_S = 1.0
MASK_LABELS = ("mask", "foreground", "alpha", "person", "human")
"""Where an answer holds several segments, the first label of these is the matte."""

MODELS = {
    model.name: model
    for model in (
        Model("briaai/RMBG-1.4", "Bria's RMBG-1.4 licence: not for commercial use without one", commercial=False),
        Model("briaai/RMBG-2.0", BRIA_LICENCE, commercial=False),
        Model("ZhengPeng7/BiRefNet", "MIT"),
        Model("ZhengPeng7/BiRefNet-matting", "MIT"),
        Model("ZhengPeng7/BiRefNet-portrait", "MIT"),
        Model("stabilityai/stable-diffusion-x4-upscaler", "CreativeML OpenRAIL++-M: use restrictions apply"),
    )
}
FAL_IDS = {"briaai/RMBG-2.0": "fal-ai/bria/background/remove"}
UPSCALE_MODELS = {2: "ai-forever/Real-ESRGAN", 4: "stabilityai/stable-diffusion-x4-upscaler"}


class HuggingFace(Provider):
    """Mattes and upscaling by models on Hugging Face.

    - *Token*: ``HUGGINGFACE_TOKEN``, else ``HF_TOKEN``, with leave to call inference providers.
    - *Cost*: by compute time against the account's monthly credit; a dedicated endpoint by the hour.
    - *Licence*: Bria's models (RMBG-1.4, RMBG-2.0) are **not for commercial use** and need
      ``accept_noncommercial=True``;
      BiRefNet is MIT. Other models: see their page.
    - *Routes*: ``hf-inference`` sends the file as it is and gets a PNG or JSON with a base64 mask. ``fal-ai`` queues
      a data URI and polls. ``endpoint`` posts to ``base_url`` itself: BiRefNet is not served by the router, so it
      needs an endpoint of your own.
    - *Cold start*: a model that is loading answers 503 with ``estimated_time``; that long is waited and asked again,
      five times at most, as long as the overall deadline allows. The waits are not part of `timeout_s`, which begins
      anew after each, and do not draw on the retry budget.

    >>> HuggingFace("briaai/RMBG-1.4", accept_noncommercial=True)
    >>> HuggingFace("briaai/RMBG-2.0", route="fal-ai", accept_noncommercial=True)
    >>> HuggingFace("ZhengPeng7/BiRefNet", route="endpoint", base_url="https://abc.endpoints.huggingface.cloud")
    """

    name: ClassVar[str] = "huggingface"
    tier: ClassVar[int] = 2
    cost: ClassVar[str] = "by compute time, against the account's credit"
    token_variables: ClassVar[tuple[str, ...]] = ("HUGGINGFACE_TOKEN", "HF_TOKEN")

    def __init__(
        self,
        model: str | Model = "briaai/RMBG-1.4",
        *,
        route: Route = "hf-inference",
        base_url: str | None = None,
        token: str | None = None,
        timeout_s: float | None = None,
        accept_noncommercial: bool = False,
        upscale_models: Mapping[int, str] | None = None,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            model: a name on Hugging Face ("owner/model"), or a :class:`Model` that says its licence too. For
                ``fal-ai`` a model that Cutaway does not know is named as fal names it ("fal-ai/…").
            route: how the model is reached, see above.
            base_url: the router, or with ``route="endpoint"`` the endpoint's whole address.
            token: takes the place of the environment's.
            timeout_s: seconds for one call, less those in which a model loads; 10 by default.
            accept_noncommercial: you may use weights that are not for commercial use.
            upscale_models: which model upscales by 2 and by 4; an empty mapping for none. Not with an endpoint.
            retry: how often failed requests are repeated.
            transport, async_transport: httpx transports, for a proxy or a test.

        Raises:
            LicenceNotAccepted: the model's weights are not for commercial use.
            InvalidOption: an unknown route, or an address that is none.
        """
        if route not in ("hf-inference", "fal-ai", "endpoint") or (route == "endpoint" and base_url is None):
            allowed = "hf-inference, fal-ai, or endpoint together with base_url"
            raise InvalidOption(
                f"route cannot be {route!r}: allowed is {allowed}.",
                details={"name": "route", "value": route, "allowed": allowed},
            )
        super().__init__(
            base_url=base_url or ROUTER,
            model=_known(model),
            token=token,
            timeout_s=timeout_s,
            accept_noncommercial=accept_noncommercial,
            retry=retry,
            transport=transport,
            async_transport=async_transport,
        )
        self.route: Route = route
        chosen = UPSCALE_MODELS if upscale_models is None else upscale_models
        self._take_upscalers({} if route == "endpoint" else {scale: _known(name) for scale, name in chosen.items()})

    def _matte_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        if self.route == "fal-ai":
            return (yield from self._by_queue(call, data, media_type))
        path = "" if self.route == "endpoint" else self._path(call.model)
        response = yield from self._when_loaded(call, path, data, media_type)
        return self._picture_in(response)

    def _upscale_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        response = yield from self._when_loaded(call, self._path(call.model), data, media_type)
        return self._picture_in(response)

    def _path(self, model: Model) -> str:
        return f"/hf-inference/models/{quote(model.name)}"

    def _when_loaded(self, call: Call, path: str, data: bytes, media_type: str) -> Steps[Response]:
        """Post the picture, and again after each wait that a loading model asks for."""
        headers = {"Content-Type": media_type, "Accept": "image/png, application/json"}
        for left in reversed(range(limits.COLD_START_TRIES)):
            try:
                return (yield from self._send(call, self._request(call, "POST", path, headers=headers, body=data)))
            except _Loading as loading:
                if not left or loading.wait_s >= call.overall.left_s:
                    raise
                yield Pause(loading.wait_s)
                call.deadline = call.retries.deadline = call.overall.capped(self.timeout_s)
        raise AssertionError("the last try returns or raises")

    def _failure_of(self, response: Response) -> CutawayError | None:
        form = response.json() if response.status == 503 else None
        estimated = form.get("estimated_time") if isinstance(form, dict) else None
        if isinstance(estimated, (int, float)) and 0 <= estimated < float("inf"):
            return _Loading(
                f"{self.name} is still loading the model.",
                details={"provider": self.name, "status": 503, "estimated_time": float(estimated)},
                retry_after=float(estimated),
            )
        return super()._failure_of(response)

    def _advice(self, status: int) -> str:
        if status in (404, 410):
            return (
                "This model is not served here. api-inference.huggingface.co is gone; the router serves only some "
                "models. Use another model, route='fal-ai', or an Inference Endpoint."
            )
        return super()._advice(status)

    def _picture_in(self, response: Response) -> bytes:
        """The mask or cut-out in an answer: a picture, or JSON that holds one as base64."""
        if response.media_type.startswith("image/"):
            return response.body
        form = response.json() if response.media_type == "application/json" else None
        encoded = _encoded_in(form)
        if encoded is None:
            kind = response.media_type[:50] or "unknown"
            raise self._invalid(f"{kind!r} without a picture in it")
        return decode_base64(encoded, self.name)

    def _by_queue(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        """fal's queue: submit, poll until completed, take the result."""
        fal_id = FAL_IDS.get(call.model.name, call.model.name)
        query = "?_subdomain=queue"
        form = {"image_url": data_uri(data, media_type), "sync_mode": True}
        # Each submission is charged, so it is not repeated where it may have been taken.
        submitted = yield from self._send(
            call,
            self._request(call, "POST", f"/fal-ai/{quote(fal_id)}{query}", form=form, max_bytes=MAX_JSON_BYTES),
            repeatable=False,
        )
        ticket = submitted.json()
        address = ticket.get("response_url") if isinstance(ticket, dict) else None
        if not isinstance(address, str):
            raise self._invalid("no address to fetch the result from")
        # Only the path counts: the router stands before fal's own host.
        path = f"/fal-ai{quote(urlsplit(address).path)}"
        call.details["request_id"] = str(ticket.get("request_id", ""))[:100]
        status = ticket.get("status")
        while status != "COMPLETED":
            if status not in ("IN_QUEUE", "IN_PROGRESS"):
                raise self._model_failure(f"status {status!r}")
            if call.deadline.left_s <= FAL_POLL_S:
                raise call.deadline.exceeded(self.name)
            yield Pause(FAL_POLL_S)
            poll = self._request(call, "GET", f"{path}/status{query}", max_bytes=MAX_JSON_BYTES)
            polled = (yield from self._send(call, poll)).json()
            status = polled.get("status") if isinstance(polled, dict) else None
        response = yield from self._send(call, self._request(call, "GET", f"{path}{query}"))
        result = response.json()
        image = result.get("image") if isinstance(result, dict) else None
        url = image.get("url") if isinstance(image, dict) else None
        if not isinstance(url, str):
            raise self._invalid("a result without a picture")
        if url.startswith("data:"):
            return decode_base64(url, self.name)
        return (yield from self._fetch(call, url))


class _Loading(Overloaded):
    """503 with an estimated time: the wait is its own, so the retry rule leaves it alone."""

    @property
    def retry(self) -> bool:
        return False

    @property
    def wait_s(self) -> float:
        return max(limits.RETRY_FIRST_DELAY_S, float(self.details["estimated_time"]))


_BY_NAME = {name.lower(): model for name, model in MODELS.items()}
_OF_FAL = {fal_id.lower(): MODELS[name] for name, fal_id in FAL_IDS.items()}


def _known(model: str | Model) -> Model:
    """With its licence, however its name is written: the service does not mind the case either."""
    if isinstance(model, Model):
        return by_name(model)
    name = model.strip()
    same = _OF_FAL.get(name.lower())
    if same is not None:
        return Model(name, same.licence, same.commercial)
    return _BY_NAME.get(name.lower()) or by_name(Model(name))


def _encoded_in(form: Any) -> str | None:
    """The base64 of a mask in the shapes that segmentation models answer with."""
    if isinstance(form, dict):
        inner = form.get("mask", form.get("image"))
        return inner if isinstance(inner, str) else None
    if not isinstance(form, list):
        return None
    segments = [entry for entry in form if isinstance(entry, dict) and isinstance(entry.get("mask"), str)]
    labelled = {str(entry.get("label", "")).lower(): entry["mask"] for entry in reversed(segments)}
    for label in MASK_LABELS:
        if label in labelled:
            return str(labelled[label])
    # Of several segments that are not named so nobody can say which is meant.
    return str(segments[0]["mask"]) if len(segments) == 1 else None
