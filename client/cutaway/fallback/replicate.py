"""Replicate: predictions are created, polled, and cancelled with the call."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Unpack

import httpx

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, invalid_option
from cutaway.fallback.answers import data_uri, form_of, invalid
from cutaway.fallback.base import Model, Provider, Settings, model_of
from cutaway.fallback.requests import MAX_JSON_BYTES, Call
from cutaway.resilience import Deadline

HOLD_S = 5  # for a quick result the creation is held open; no longer, since only its answer has the id to cancel
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
    Model("lucataco/remove-bg:95fcc2a26d3899cd6c2691c900465aaeff466285a65c14638cc5f36f34befaf1"),
    Model("bria/remove-background", "Bria's terms, as Replicate shows them", inputs={"preserve_alpha": True}),
    Model("nightmareai/real-esrgan:f121d640bd286e1fdc67f9799164c1d5be36ff74576ee11c803ae5b665dd46aa", "BSD-3-Clause"),
)
MODELS = {model.name.partition(":")[0]: model for model in _MODELS}


class Replicate(Provider):
    """Mattes and upscaling by models on Replicate.

    - *Token*: ``REPLICATE_API_TOKEN``. *Licence*: BiRefNet is MIT, Real-ESRGAN BSD-3-Clause; others: see their pages.
    - *Cost*: each prediction, even if nobody fetches it. So a creation is repeated only where it certainly was not
      accepted, and a prediction that nobody waits for is cancelled.

    Args:
        model: "owner/name" of a known or official model, "owner/name:version" (community models need a version), or a
            :class:`Model`.
        inputs: sent beside the picture, over what the model brings.
        upscale_model: takes ``image`` and ``scale``; None for no upscaling.
        settings: see :class:`cutaway.providers.Provider`; `timeout_s` is 30 by default.

    >>> Replicate("owner/name:0123…", inputs={"threshold": 0.1})
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
        **settings: Unpack[Settings],
    ) -> None:
        for each in (model, upscale_model):
            if isinstance(each, str) and not _MODEL.fullmatch(each.strip()):
                raise invalid_option("model", each, "owner/name, owner/name:version, or a version, on Replicate")
        scales = () if upscale_model is None else limits.UPSCALE_SCALES
        upscalers = {scale: model_of(upscale_model or "", MODELS) for scale in scales}
        super().__init__(model_of(model, MODELS), upscalers, **settings)
        self._inputs = dict(inputs or {})

    async def _serve(self, call: Call, data: bytes, kind: str) -> bytes:
        more = self._inputs if call.scale == 1 else {"scale": call.scale}
        form = {"version": call.model.name, "input": {**call.model.inputs, **more, "image": data_uri(data, kind)}}
        kept_back_s = min(CANCEL_S, 0.1 * call.deadline.budget_s)
        until = call.deadline.capped(call.deadline.left_s - kept_back_s)
        bounds: dict[str, Any] = {"deadline": until, "max_bytes": MAX_PREDICTION_BYTES}
        hold_s, give_up_s = min(HOLD_S, int(until.left_s / 2)), math.ceil(call.deadline.left_s)
        headers = {"Prefer": f"wait={max(1, hold_s)}", "Cancel-After": f"{max(CANCEL_AFTER_MIN_S, give_up_s)}s"}
        created = await call.send("POST", "/v1/predictions", headers=headers, json=form, repeatable=False, **bounds)
        prediction = parse(created)
        call.details["prediction"] = prediction["id"]
        path, wait_s = f"/v1/predictions/{prediction['id']}", POLL_FIRST_S
        try:
            while prediction["status"] in ("starting", "processing"):
                until.check(self.name, need_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(POLL_MAX_S, wait_s * 1.5)
                prediction = parse(await call.send("GET", path, **bounds))
        except BaseException:
            with suppress(CutawayError):  # what matters is the error that led here
                # Shielded, since a caller may cancel again.
                await asyncio.shield(call.once("POST", f"{path}/cancel", deadline=Deadline(kept_back_s)))
            raise
        metrics = prediction.get("metrics")
        if isinstance(metrics, dict) and isinstance(metrics.get("predict_time"), (int, float)):
            call.details["predict_time_s"] = float(metrics["predict_time"])
        status, output = prediction["status"], prediction.get("output")
        if status in ("failed", "canceled", "aborted"):
            raise self._model_failure(prediction.get("error") or f"the prediction was {status}")
        if status != "succeeded":
            raise invalid(self.name, "a status that is not known")
        address = output[0] if isinstance(output, list) and output else output
        if not isinstance(address, str):
            raise invalid(self.name, "a prediction without an output file")
        return await call.fetch(address)


def parse(response: httpx.Response) -> dict[str, Any]:
    """The prediction in an answer, with a status and an id that is safe in a path."""
    form = form_of(response)
    if isinstance(form.get("status"), str) and _PREDICTION.fullmatch(str(form.get("id"))):
        return form
    raise invalid(Replicate.name, "no prediction")
