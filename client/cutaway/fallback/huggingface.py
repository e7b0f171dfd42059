"""Hugging Face: models behind its router, and dedicated Inference Endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal, Unpack
from urllib.parse import quote

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, Overloaded, invalid_option
from cutaway.fallback.answers import decode_base64, form_of, invalid, parse_json
from cutaway.fallback.base import BRIA_LICENCE, Model, Provider, ProviderKeywords, model_of
from cutaway.fallback.requests import Request, media_type

MASK_LABELS = ("mask", "foreground", "alpha", "person", "human")  # of the matte among several segments, best first

UPSCALE_MODELS = {2: "ai-forever/Real-ESRGAN", 4: "stabilityai/stable-diffusion-x4-upscaler"}
_MODELS = (
    Model("briaai/RMBG-2.0", BRIA_LICENCE, commercial=False),
    *(Model(f"ZhengPeng7/BiRefNet{variant}", "MIT") for variant in ("", "-matting", "-portrait")),
    Model("stabilityai/stable-diffusion-x4-upscaler", "CreativeML OpenRAIL++-M: use restrictions apply"),
)
MODELS = {model.name.lower(): model for model in _MODELS}


class HuggingFace(Provider):
    """Mattes and upscaling by models on Hugging Face. *Cost*: by compute time; a dedicated endpoint by the hour.
    *Licence*: Bria's models are **not for commercial use** and need ``accept_noncommercial=True``; BiRefNet is MIT.

    Args:
        model: "owner/model", or a :class:`Model` with its licence.
        route: ``hf-inference`` is the router; ``endpoint`` posts to `base_url` itself, as BiRefNet needs it.
        upscale_models: by factor, 2 and 4; an empty mapping for none. Not with an endpoint.
        keywords: see :class:`cutaway.providers.Provider`; `timeout_s` is 10 by default.

    >>> HuggingFace("ZhengPeng7/BiRefNet", route="endpoint", base_url="https://abc.endpoints.huggingface.cloud")
    """

    name = "huggingface"
    tier = 2
    cost = "by compute time, against the account's credit"
    default_url = "https://router.huggingface.co"
    gone = "api-inference.huggingface.co is gone, and the router serves only some models: try another, or an endpoint."
    token_variables = ("HUGGINGFACE_TOKEN", "HF_TOKEN")
    delivery_hosts = ("huggingface.co", "hf.co")

    def __init__(
        self,
        model: str | Model = "briaai/RMBG-1.4",
        *,
        route: Literal["hf-inference", "endpoint"] = "hf-inference",
        upscale_models: Mapping[int, str | Model] | None = None,
        **keywords: Unpack[ProviderKeywords],
    ) -> None:
        if route != "hf-inference" and not (route == "endpoint" and keywords.get("base_url")):
            raise invalid_option("route", route, "hf-inference, or endpoint together with base_url")
        named = {} if route == "endpoint" else UPSCALE_MODELS if upscale_models is None else upscale_models
        upscalers = {scale: model_of(each, MODELS) for scale, each in named.items()}
        super().__init__(model_of(model, MODELS), upscalers, **keywords)
        self.route = route

    async def _serve(self, request: Request, data: bytes, kind: str) -> bytes:
        """Post the picture, and again after the estimated time of a loading model."""
        path = "" if self.route == "endpoint" else f"/hf-inference/models/{quote(request.model.name)}"
        headers, size = {"Content-Type": kind, "Accept": "image/png, application/json"}, limits.HOSTED_MAX_ANSWER_BYTES
        for left in reversed(range(limits.COLD_START_TRIES)):
            try:
                return parse(await request.send("POST", path, headers=headers, content=data, max_bytes=size))
            except _Loading as loading:
                wait_s = max(limits.RETRY_FIRST_DELAY_S, loading.details["estimated_time"])
                if not left or wait_s >= request.overall.left_s:
                    raise
                await asyncio.sleep(wait_s)
                request.restart()
        raise AssertionError("the last try returns or raises")

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
    form = parse_json(response.content) if media_type(response) == "application/json" else None
    if isinstance(form, dict):
        form = [{"mask": form.get("mask", form.get("image"))}]
    segments = [each for each in form if isinstance(each, dict)] if isinstance(form, list) else []
    masks = {str(each.get("label", n)).lower(): each["mask"] for n, each in enumerate(segments) if each.get("mask")}
    labels = [label for label in MASK_LABELS if label in masks] or list(masks) * (len(masks) == 1)
    if not labels or not isinstance(masks[labels[0]], str):
        raise invalid(HuggingFace.name, f"{media_type(response) or 'unknown'!r} without a picture in it")
    return decode_base64(masks[labels[0]], HuggingFace.name)
