"""Hugging Face: inference providers behind its router, and dedicated Inference Endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal, Unpack
from urllib.parse import quote, urlsplit

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, Overloaded, invalid_option
from cutaway.fallback.answers import data_uri, decode_base64, form_of, invalid, json_of
from cutaway.fallback.base import BRIA_LICENCE, Model, Provider, Settings, model_of
from cutaway.fallback.requests import Call, media_type

FAL_POLL_S = 1.0
MASK_LABELS = ("mask", "foreground", "alpha", "person", "human")
"""Labels of the matte in an answer with several segments, in order of preference."""

FAL_IDS = {"briaai/RMBG-2.0": "fal-ai/bria/background/remove"}
UPSCALE_MODELS = {2: "ai-forever/Real-ESRGAN", 4: "stabilityai/stable-diffusion-x4-upscaler"}
_MODELS = (
    Model("briaai/RMBG-2.0", BRIA_LICENCE, commercial=False),
    *(Model(f"ZhengPeng7/BiRefNet{variant}", "MIT") for variant in ("", "-matting", "-portrait")),
    Model("stabilityai/stable-diffusion-x4-upscaler", "CreativeML OpenRAIL++-M: use restrictions apply"),
)
MODELS = {model.name.lower(): model for model in _MODELS}


class HuggingFace(Provider):
    """Mattes and upscaling by models on Hugging Face.

    - *Token*: ``HUGGINGFACE_TOKEN``, else ``HF_TOKEN``. *Cost*: by compute time; a dedicated endpoint by the hour.
    - *Licence*: Bria's models are **not for commercial use** and need ``accept_noncommercial=True``; BiRefNet is MIT.
    - *Cold start*: where a model is loading (503 with ``estimated_time``), the request is repeated, five times at most.

    Args:
        model: "owner/model", or "fal-ai/…", or a :class:`Model` with its licence.
        route: ``hf-inference`` sends the file as it is; ``fal-ai`` queues a data URI and polls; ``endpoint`` posts to
            `base_url` itself: BiRefNet is not served by the router, so it needs an endpoint of your own.
        upscale_models: the upscaling models by factor, 2 and 4; an empty mapping for none. Not with an endpoint.
        settings: see :class:`cutaway.providers.Provider`; `timeout_s` is 10 by default.

    >>> HuggingFace("ZhengPeng7/BiRefNet", route="endpoint", base_url="https://abc.endpoints.huggingface.cloud")
    """

    name = "huggingface"
    tier = 2
    cost = "by compute time, against the account's credit"
    default_url = "https://router.huggingface.co"
    gone = "api-inference.huggingface.co is gone, and the router serves only some models: try another, or an endpoint."
    token_variables = ("HUGGINGFACE_TOKEN", "HF_TOKEN")
    delivery_hosts = ("huggingface.co", "hf.co", "fal.media")

    def __init__(
        self,
        model: str | Model = "briaai/RMBG-1.4",
        *,
        route: Literal["hf-inference", "fal-ai", "endpoint"] = "hf-inference",
        upscale_models: Mapping[int, str] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        if route not in ("hf-inference", "fal-ai") and not (route == "endpoint" and settings.get("base_url")):
            raise invalid_option("route", route, "hf-inference, fal-ai, or endpoint together with base_url")
        named = UPSCALE_MODELS if upscale_models is None else upscale_models
        upscalers = {} if route == "endpoint" else {scale: model_of(name, MODELS) for scale, name in named.items()}
        super().__init__(model_of(model, MODELS), upscalers, **settings)
        self.route = route

    async def _serve(self, call: Call, data: bytes, kind: str) -> bytes:
        """Post the picture, and again after the estimated time of a loading model."""
        if self.route == "fal-ai" and call.scale == 1:
            return await self._queued(call, data, kind)
        path = "" if self.route == "endpoint" else f"/hf-inference/models/{quote(call.model.name)}"
        headers, size = {"Content-Type": kind, "Accept": "image/png, application/json"}, limits.HOSTED_MAX_ANSWER_BYTES
        for left in reversed(range(limits.COLD_START_TRIES)):
            try:
                return parse(await call.send("POST", path, headers=headers, content=data, max_bytes=size))
            except _Loading as loading:
                wait_s = max(limits.RETRY_FIRST_DELAY_S, loading.details["estimated_time"])
                if not left or wait_s >= call.overall.left_s:
                    raise
                await asyncio.sleep(wait_s)
                call.restart()
        raise AssertionError("the last try returns or raises")

    async def _queued(self, call: Call, data: bytes, kind: str) -> bytes:
        """fal's queue: submit, poll until completed, take the result."""
        path, query = f"/fal-ai/{quote(FAL_IDS.get(call.model.name, call.model.name))}", "?_subdomain=queue"
        form = {"image_url": data_uri(data, kind), "sync_mode": True}
        # Each submission is charged, so that one that may have been accepted is not repeated.
        ticket = form_of(await call.send("POST", f"{path}{query}", json=form, repeatable=False))
        if not isinstance(ticket.get("response_url"), str):
            raise invalid(self.name, "no address to fetch the result from")
        # Only the path is used, because the address is fal's own and requests go through the router.
        path = f"/fal-ai{quote(urlsplit(ticket['response_url']).path)}"
        call.details["request_id"] = str(ticket.get("request_id", ""))[:100]
        while (status := ticket.get("status")) != "COMPLETED":
            if status not in ("IN_QUEUE", "IN_PROGRESS"):
                raise self._model_failure(f"status {status!r}")
            call.deadline.check(self.name, need_s=FAL_POLL_S)
            await asyncio.sleep(FAL_POLL_S)
            ticket = form_of(await call.send("GET", f"{path}/status{query}"))
        image = form_of(await call.send("GET", f"{path}{query}", max_bytes=limits.HOSTED_MAX_ANSWER_BYTES)).get("image")
        if not isinstance(image, dict) or not isinstance(image.get("url"), str):
            raise invalid(self.name, "a result without a picture")
        return await call.fetch(image["url"])

    def failure_of(self, response: httpx.Response) -> CutawayError | None:
        estimated = form_of(response).get("estimated_time") if response.status_code == 503 else None
        if isinstance(estimated, (int, float)) and 0 <= estimated < float("inf"):
            details = {"provider": self.name, "status": 503, "estimated_time": float(estimated)}
            return _Loading(f"{self.name} is still loading the model.", details=details, retry_after=float(estimated))
        return super().failure_of(response)


class _Loading(Overloaded):
    """503 with an estimated time, which is not subject to the retry policy."""

    retry = False


def parse(response: httpx.Response) -> bytes:
    """The mask or cut-out in an answer: a picture, or JSON that holds one as base64, or several with labels."""
    if media_type(response).startswith("image/"):
        return response.content
    form = json_of(response) if media_type(response) == "application/json" else None
    if isinstance(form, dict):
        form = [{"mask": form.get("mask", form.get("image"))}]
    segments = [each for each in form if isinstance(each, dict)] if isinstance(form, list) else []
    masks = {str(each.get("label", n)).lower(): each["mask"] for n, each in enumerate(segments) if each.get("mask")}
    labels = [label for label in MASK_LABELS if label in masks] or list(masks) * (len(masks) == 1)
    if not labels or not isinstance(masks[labels[0]], str):
        raise invalid(HuggingFace.name, f"{media_type(response) or 'unknown'!r} without a picture in it")
    return decode_base64(masks[labels[0]], HuggingFace.name)
