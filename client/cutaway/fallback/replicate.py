"""Replicate: predictions are created, polled, and cancelled with the call."""

from __future__ import annotations

import asyncio
import base64
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Unpack

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, invalid_option
from cutaway.fallback.answers import form_of, invalid
from cutaway.fallback.base import Model, Provider, ProviderKeywords, model_of
from cutaway.fallback.requests import MAX_JSON_BYTES, Request
from cutaway.resilience import Deadline

POLL_FIRST_S, POLL_MAX_S = 0.5, 2.0
CANCEL_S = 1.0  # reserved for the cancellation of a prediction, at most a tenth of the call's time
CANCEL_AFTER_MIN_S = 5  # Replicate takes no less
MAX_PREDICTION_BYTES = limits.HOSTED_MAX_ANSWER_BYTES + MAX_JSON_BYTES  # with the picture itself as a data URI

_MODEL = re.compile(r"[\w.-]+/[\w.-]+(:[0-9a-f]{8,64})?|[0-9a-f]{64}")
_PREDICTION = re.compile(r"[A-Za-z0-9_-]{1,64}")

_RGBA = {"format": "png", "background_type": "rgba"}
_MODELS = (
    Model("men1scus/birefnet:f3e7ae8430032db9e9923c65f95ddf9f5b7ded8b7780163f18d1db67215dbd6d", "MIT (BiRefNet)"),
    Model("851-labs/background-remover:a029dff38972b5fda4ec5d75d7d1cd25aeff621d2cf4946a41055d7db66b80bc", inputs=_RGBA),
    Model("nightmareai/real-esrgan:f121d640bd286e1fdc67f9799164c1d5be36ff74576ee11c803ae5b665dd46aa", "BSD-3-Clause"),
)
MODELS = {model.name.partition(":")[0]: model for model in _MODELS}


class Replicate(Provider):
    """Mattes and upscaling by models on Replicate. *Licence*: BiRefNet is MIT, Real-ESRGAN BSD-3-Clause; others: see
    their pages. *Cost*: each prediction, even if nobody fetches it. So a creation is repeated only where it certainly
    was not accepted, and a prediction that nobody waits for is cancelled.

    Args:
        model: "owner/name" of a known or official model, "owner/name:version" (community models need a version), or a
            :class:`Model`.
        inputs: sent beside the picture, over what the model brings.
        upscale_model: takes ``image`` and ``scale``; None for no upscaling.
        keywords: see :class:`cutaway.providers.Provider`; `timeout_s` is 30 by default.
    """

    name = "replicate"
    tier = 3
    cost = "each prediction, by run time"
    default_url = "https://api.replicate.com"
    token_variables = ("REPLICATE_API_TOKEN",)
    delivery_hosts = ("replicate.delivery",)

    def __init__(
        self,
        model: str | Model = "men1scus/birefnet",
        *,
        inputs: Mapping[str, Any] | None = None,
        upscale_model: str | Model | None = "nightmareai/real-esrgan",
        **keywords: Unpack[ProviderKeywords],
    ) -> None:
        for each in (model, upscale_model):
            if isinstance(each, str) and not _MODEL.fullmatch(each.strip()):
                raise invalid_option("model", each, "owner/name, owner/name:version, or a version, on Replicate")
        upscaler = upscale_model and model_of(upscale_model, MODELS)
        upscalers = dict.fromkeys(limits.UPSCALE_SCALES, upscaler) if upscaler else {}
        super().__init__(model_of(model, MODELS), upscalers, **keywords)
        self._inputs = dict(inputs or {})

    async def _serve(self, request: Request, data: bytes, kind: str) -> bytes:
        more = self._inputs if request.scale == 1 else {"scale": request.scale}
        image = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        form = {"version": request.model.name, "input": {**request.model.inputs, **more, "image": image}}
        kept_back_s = min(CANCEL_S, 0.1 * request.deadline.budget_s)
        until = request.deadline.capped(request.deadline.left_s - kept_back_s)
        bounds: dict[str, Any] = {"deadline": until, "max_bytes": MAX_PREDICTION_BYTES}
        cancel_after_s = max(CANCEL_AFTER_MIN_S, math.ceil(request.deadline.left_s))
        headers = {"Cancel-After": f"{cancel_after_s}s"}
        created = await request.send("POST", "/v1/predictions", headers=headers, json=form, repeatable=False, **bounds)
        prediction = parse(created)
        request.details["prediction"] = prediction["id"]
        path, wait_s = f"/v1/predictions/{prediction['id']}", POLL_FIRST_S
        try:
            while prediction["status"] in ("starting", "processing"):
                until.check(self.name, need_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(POLL_MAX_S, wait_s * 1.5)
                prediction = parse(await request.send("GET", path, **bounds))
        except BaseException:
            with suppress(CutawayError):  # what matters is the error that led here
                # Shielded, since a caller may cancel again.
                await asyncio.shield(request.once("POST", f"{path}/cancel", deadline=Deadline(kept_back_s)))
            raise
        status, output = prediction["status"], prediction.get("output")
        if status in ("failed", "canceled", "aborted"):
            raise self._model_failure(prediction.get("error") or f"the prediction was {status}")
        if status != "succeeded":
            raise invalid(self.name, "a status that is not known")
        address = output[0] if isinstance(output, list) and output else output
        if not isinstance(address, str):
            raise invalid(self.name, "a prediction without an output file")
        return await request.fetch(address)


def parse(response: httpx.Response) -> dict[str, Any]:
    """The prediction in an answer, with a status and an id that is safe in a path."""
    form = form_of(response)
    if isinstance(form.get("status"), str) and _PREDICTION.fullmatch(str(form.get("id"))):
        return form
    raise invalid(Replicate.name, "no prediction")
