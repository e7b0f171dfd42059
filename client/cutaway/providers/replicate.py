"""Replicate: predictions that are created, polled, and cancelled when nobody waits for them any more."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InvalidOption
from cutaway.providers.answers import data_uri, decode_base64
from cutaway.providers.base import MAX_JSON_BYTES, Call, Provider
from cutaway.providers.model import Model, by_name
from cutaway.providers.steps import Pause, Response, Steps
from cutaway.resilience import Deadline, RetryPolicy

if TYPE_CHECKING:
    import httpx

API = "https://api.replicate.com"

HOLD_S = 5
"""How long the creation may be held open for a quick result. Short, since only its answer tells what to cancel."""

POLL_FIRST_S = 0.5
POLL_MAX_S = 2.0
CANCEL_S = 1.0
"""What is kept back at the end to cancel a prediction, at most a tenth of the call's time."""

CANCEL_AFTER_MIN_S = 5
"""Replicate takes no shorter time for its own cancelling."""

MODELS = {
    model.name.partition(":")[0]: model
    for model in (
        Model("men1scus/birefnet:f3e7ae8430032db9e9923c65f95ddf9f5b7ded8b7780163f18d1db67215dbd6d", "MIT (BiRefNet)"),
        Model(
            "851-labs/background-remover:a029dff38972b5fda4ec5d75d7d1cd25aeff621d2cf4946a41055d7db66b80bc",
            inputs={"format": "png", "background_type": "rgba"},
        ),
        Model("lucataco/remove-bg:95fcc2a26d3899cd6c2691c900465aaeff466285a65c14638cc5f36f34befaf1"),
        Model("bria/remove-background", "Bria's terms, as Replicate shows them", inputs={"preserve_alpha": True}),
        Model(
            "nightmareai/real-esrgan:f121d640bd286e1fdc67f9799164c1d5be36ff74576ee11c803ae5b665dd46aa",
            "BSD-3-Clause (Real-ESRGAN)",
        ),
    )
}

_MODEL = re.compile(r"[\w.-]+/[\w.-]+(:[0-9a-f]{8,64})?|[0-9a-f]{64}")
_PREDICTION = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Replicate(Provider):
    """Mattes and upscaling by models on Replicate.

    - *Token*: ``REPLICATE_API_TOKEN``.
    - *Cost*: each prediction, by the model's run time; a created one is charged even if nobody fetches it. So a
      creation is repeated only where it certainly was not accepted (no connection, 429); after a broken connection
      or a 5xx the tier is given up rather than risking a second charge. Whoever gives up cancels: on the deadline,
      on Ctrl-C, on a cancelled task; and ``Cancel-After`` makes Replicate do it where that does not get through.
    - *Licence*: BiRefNet is MIT, Real-ESRGAN BSD-3-Clause; others: see the model's page.
    - *Models*: community models need a version ("owner/name:version"), official ones none. Versions disappear; the
      known ones are in :data:`MODELS`. Replicate's limit is 600 creations a minute, 6 on granted credit. Output files
      are deleted after an hour and are fetched at once.

    >>> Replicate()                                        # BiRefNet
    >>> Replicate("851-labs/background-remover")
    >>> Replicate("owner/name:0123…", inputs={"threshold": 0.1})
    """

    name: ClassVar[str] = "replicate"
    tier: ClassVar[int] = 3
    cost: ClassVar[str] = "each prediction, by run time"
    token_variables: ClassVar[tuple[str, ...]] = ("REPLICATE_API_TOKEN",)

    def __init__(
        self,
        model: str | Model = "men1scus/birefnet",
        *,
        inputs: Mapping[str, Any] | None = None,
        output_index: int = 0,
        base_url: str = API,
        token: str | None = None,
        timeout_s: float | None = None,
        accept_noncommercial: bool = False,
        upscale_model: str | Model | None = "nightmareai/real-esrgan",
        face_enhance: bool = False,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            model: "owner/name" of a known or official model, "owner/name:version", or a :class:`Model`.
            inputs: sent beside the picture, over what the model brings.
            output_index: which one to take where the output is a list.
            base_url: the API's address without its ``/v1``.
            token: takes the place of the environment's.
            timeout_s: seconds for one call; 30 by default.
            accept_noncommercial: you may use weights that are not for commercial use.
            upscale_model: takes ``image``, ``scale`` and ``face_enhance``; None for no upscaling.
            face_enhance: let the upscaler redraw faces.
            retry: how often failed requests are repeated, see above.
            transport, async_transport: httpx transports, for a proxy or a test.

        Raises:
            LicenceNotAccepted: the model's weights are not for commercial use.
            InvalidOption: a name or an address that is none.
        """
        super().__init__(
            base_url=base_url,
            model=_known(model),
            token=token,
            timeout_s=timeout_s,
            accept_noncommercial=accept_noncommercial,
            retry=retry,
            transport=transport,
            async_transport=async_transport,
        )
        self._inputs = dict(inputs or {})
        self._output_index = output_index
        self._face_enhance = face_enhance
        if upscale_model is not None:
            self._take_upscalers(dict.fromkeys(limits.UPSCALE_SCALES, _known(upscale_model)))

    def _matte_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        inputs = {**call.model.inputs, **self._inputs, "image": data_uri(data, media_type)}
        return (yield from self._predict(call, inputs))

    def _upscale_steps(self, call: Call, data: bytes, media_type: str) -> Steps[bytes]:
        inputs = {**call.model.inputs, "scale": call.scale, "face_enhance": self._face_enhance}
        return (yield from self._predict(call, inputs | {"image": data_uri(data, media_type)}))

    def _predict(self, call: Call, inputs: dict[str, Any]) -> Steps[bytes]:
        kept_back_s = min(CANCEL_S, 0.1 * call.deadline.budget_s)
        until = call.deadline.capped(call.deadline.left_s - kept_back_s)
        headers = {
            "Prefer": f"wait={max(1, min(HOLD_S, int(until.left_s / 2)))}",
            "Cancel-After": f"{max(CANCEL_AFTER_MIN_S, math.ceil(call.deadline.left_s))}s",
        }
        form = {"version": call.model.name, "input": inputs}
        create = self._request(
            call, "POST", "/v1/predictions", headers=headers, form=form, deadline=until, max_bytes=_MAX_PREDICTION_BYTES
        )
        response = yield from self._send(call, create, repeatable=False)
        prediction = self._prediction(response)
        call.details["prediction"] = prediction["id"]
        prediction = yield from self._finished(call, prediction, until)
        metrics = prediction.get("metrics")
        if isinstance(metrics, dict) and isinstance(metrics.get("predict_time"), (int, float)):
            call.details["predict_time_s"] = float(metrics["predict_time"])
        output = self._output(prediction)
        return (
            decode_base64(output, self.name) if output.startswith("data:") else (yield from self._fetch(call, output))
        )

    def _finished(self, call: Call, prediction: dict[str, Any], until: Deadline) -> Steps[dict[str, Any]]:
        """Poll until it has succeeded; cancel it where that is not waited for.

        Raises:
            CutawayError: it failed, was cancelled by somebody else, or takes too long.
        """
        path = f"/v1/predictions/{prediction['id']}"
        wait = POLL_FIRST_S
        try:
            while prediction["status"] in ("starting", "processing"):
                until.check(self.name, need_s=wait)
                yield Pause(wait)
                wait = min(POLL_MAX_S, wait * 1.5)
                poll = self._request(call, "GET", path, deadline=until, max_bytes=_MAX_PREDICTION_BYTES)
                prediction = self._prediction((yield from self._send(call, poll)))
        except GeneratorExit:
            raise
        except BaseException:
            yield from self._cancel(call, path)
            raise
        if prediction["status"] == "succeeded":
            return prediction
        if prediction["status"] == "failed":
            raise self._model_failure(prediction.get("error"))
        if prediction["status"] in ("canceled", "aborted"):
            raise self._model_failure(f"the prediction was {prediction['status']}")
        raise self._invalid("a status that is not known")

    def _cancel(self, call: Call, path: str) -> Steps[None]:
        """Best effort: what matters is the error that led here."""
        brief = Deadline(min(CANCEL_S, 0.1 * call.deadline.budget_s))
        try:
            yield from self._once(call, self._request(call, "POST", f"{path}/cancel", deadline=brief))
        except CutawayError:
            call.details["cancelled"] = False
        else:
            call.details["cancelled"] = True

    def _prediction(self, response: Response) -> dict[str, Any]:
        form = response.json()
        if (
            not isinstance(form, dict)
            or not isinstance(form.get("id"), str)
            or not _PREDICTION.fullmatch(form["id"])
            or not isinstance(form.get("status"), str)
        ):
            raise self._invalid("no prediction")
        return form

    def _output(self, prediction: dict[str, Any]) -> str:
        """The file's address; a succeeded prediction may still hold none."""
        output = prediction.get("output")
        if isinstance(output, list):
            output = output[self._output_index] if -len(output) <= self._output_index < len(output) else None
        if not isinstance(output, str):
            raise self._invalid("a prediction without an output file")
        return output


_MAX_PREDICTION_BYTES = limits.HOSTED_MAX_ANSWER_BYTES + MAX_JSON_BYTES
"""Small models answer with the picture itself as a data URI."""


def _known(model: str | Model) -> Model:
    if isinstance(model, Model):
        return by_name(model)
    model = model.strip()
    if not _MODEL.fullmatch(model):
        allowed = "owner/name, owner/name:version, or a version"
        raise InvalidOption(
            f"{model[:100]!r} names no model on Replicate: allowed is {allowed}.",
            details={"name": "model", "value": model[:100], "allowed": allowed},
        )
    known = MODELS.get(model.partition(":")[0].lower())
    if known is None:
        return by_name(Model(model))
    return known if ":" not in model else Model(model, known.licence, known.commercial, known.inputs)
