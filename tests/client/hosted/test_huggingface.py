"""Hugging Face: what is sent, what answers mean, cold starts, and endpoints."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import InferenceError, Overloaded, ProcessingTimeout
from cutaway.fallback import Fallback
from cutaway.providers import HuggingFace, InvalidAnswer, Space
from PIL import Image

from tests.client.hosted.asking import assert_right, hub
from tests.client.hosted.peers import (
    SIZE_WH,
    TOKEN,
    HubScript,
    Peer,
    Reply,
    Stopwatch,
    as_json,
    cutout,
    encoded,
    hub_json,
    mask,
    picture,
    png,
)

SQUARE = mask().resize((64, 64))
OPAQUE_GREY = Image.merge("RGBA", (*[mask()] * 3, Image.new("L", SIZE_WH, 255)))

HUB_ANSWERS = {
    "png mask": png(mask()),
    "png cut-out": png(cutout()),
    "grey png with an opaque alpha": png(OPAQUE_GREY),
    "rgb mask": png(mask().convert("RGB")),
    "palette mask": png(mask().convert("P")),
    "1-bit mask": png(mask().convert("1")),
    "16-bit mask": png(Image.fromarray(np.asarray(mask()).astype(np.uint16) * 257)),
    "jpeg mask": Reply(body=encoded(mask(), "image/jpeg"), headers={"Content-Type": "image/jpeg; q=1"}),
    "webp cut-out": Reply(body=encoded(cutout(), "image/webp"), headers={"Content-Type": "image/webp"}),
    "model-sized square": png(SQUARE),
    "half-sized": png(mask().resize((SIZE_WH[0] // 2, SIZE_WH[1] // 2))),
    "json": hub_json(mask()),
    "json with another single label": hub_json(mask(), "LABEL_0"),
    "json with several labels": as_json(
        [
            {"label": "sky", "mask": base64.b64encode(encoded(Image.new("L", SIZE_WH, 255))).decode()},
            {"label": "Person", "mask": base64.b64encode(encoded(mask())).decode()},
        ]
    ),
    "json with a cut-out": hub_json(cutout()),
    "json object with a data URI": as_json(
        {"image": "data:image/png;base64," + base64.b64encode(encoded(cutout())).decode()}
    ),
}


@pytest.mark.parametrize("answer", HUB_ANSWERS)
def test_hub_answers(answer: str, serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(HubScript(HUB_ANSWERS[answer]))
    if answer in ("model-sized square", "half-sized"):
        result = matte(hub(peer))
        assert result.alpha.shape == (SIZE_WH[1], SIZE_WH[0])
        assert float(np.abs(result.alpha.astype(int) - np.asarray(mask())).mean()) < 12
    else:
        assert_right(matte(hub(peer)))


NO_MATTES = {
    "coloured picture without alpha": png(Image.open(io.BytesIO(picture()))),
    "turned on its side": png(mask((SIZE_WH[1], SIZE_WH[0]))),
    "damaged": Reply(body=encoded(mask())[:-30], headers={"Content-Type": "image/png"}),
    "not what it says": Reply(body=b"<svg/>", headers={"Content-Type": "image/png"}),
    "gif": Reply(body=encoded(mask(), "image/gif"), headers={"Content-Type": "image/gif"}),
    "a bomb": Reply(
        body=encoded(mask()).replace(
            encoded(mask())[12:33], b"IHDR\xff\xff\xff\x00\xff\xff\xff\x00\x08\x00\x00\x00\x00AAAA"
        ),
        headers={"Content-Type": "image/png"},
    ),
    "several labels and none that is known": as_json([{"label": x, "mask": "aGk="} for x in ("sky", "tree")]),
    "damaged base64": as_json([{"label": "mask", "mask": "@@@"}]),
    "a data URI that is not base64": as_json({"mask": "data:image/png,abc"}),
    "no segments": as_json([]),
    "an error with status 200": as_json({"error": "out of memory"}),
}


@pytest.mark.parametrize("answer", NO_MATTES)
def test_what_is_no_matte_is_refused(answer: str, serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(HubScript(NO_MATTES[answer]))
    with pytest.raises(InvalidAnswer):
        matte(hub(peer))
    assert len(peer.received) == 1


def test_hub_request(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(HubScript())
    result = matte(hub(peer, token=TOKEN))
    (received,) = peer.received
    assert (received.method, received.path) == ("POST", "/hf-inference/models/briaai/RMBG-1.4")
    assert received.headers["authorization"] == f"Bearer {TOKEN}"
    assert received.headers["content-type"] == "image/png"
    assert received.body == picture()
    assert (result.provider, result.model, result.requests) == ("huggingface", "briaai/RMBG-1.4", 1)


@pytest.mark.parametrize(("names", "expected"), [(("HUGGINGFACE_TOKEN", "HF_TOKEN"), "a"), (("HF_TOKEN",), "b")])
def test_the_token_comes_from_the_environment(
    names: tuple[str, ...],
    expected: str,
    serve: Callable[..., Peer],
    matte: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in names:
        monkeypatch.setenv(name, "a" if name == "HUGGINGFACE_TOKEN" else "b")
    peer = serve(HubScript())
    matte(hub(peer))
    assert peer.received[0].headers["authorization"] == f"Bearer {expected}"


LOADING = as_json({"error": "Model briaai/RMBG-1.4 is currently loading", "estimated_time": 0.05}, 503)


@pytest.mark.parametrize(("loading", "served"), [(1, True), (4, True), (5, False)])
def test_cold_start_is_waited_for_five_times_at_most(
    loading: int, served: bool, serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutaway.contract.limits.RETRY_FIRST_DELAY_S", 0.01)
    peer = serve(HubScript(*[LOADING] * loading, png(mask())))
    watch = Stopwatch()
    if served:
        assert_right(matte(hub(peer)))
    else:
        with pytest.raises(Overloaded, match="still loading"):
            matte(hub(peer))
    assert len(peer.received) == min(loading + 1, 5)
    assert watch.s >= 0.05 * min(loading, 4)


def test_a_cold_start_that_outlasts_the_deadline_is_not_waited_for(
    serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    peer = serve(HubScript(as_json({"error": "loading", "estimated_time": 579.3}, 503)))
    with pytest.raises(Overloaded) as caught:
        matte(hub(peer))
    assert caught.value.retry_after == 579.3
    assert len(peer.received) == 1


SLOWLY = as_json({"error": "loading", "estimated_time": 0.6}, 503)


def test_a_cold_start_may_take_longer_than_the_tier(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    """The overall deadline bounds it: the tier's own time begins anew when the model should be there."""
    peer = serve(HubScript(SLOWLY, png(mask())))
    assert_right(matte(hub(peer, timeout_s=0.5)))
    assert len(peer.received) == 2


def test_a_cold_start_is_waited_for_within_a_chain(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    peer = serve(HubScript(SLOWLY, png(mask())))
    served = infer(Fallback([hub(peer, timeout_s=0.5), Space(base_url=peer.base_url)]), subject="all")
    assert (served.provider, served.tried) == ("huggingface", ())
    assert len(peer.received) == 2


def test_after_a_cold_start_the_tier_s_own_time_counts(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(HubScript(as_json({"error": "loading", "estimated_time": 0.5}, 503), Reply(hang="before")))
    watch = Stopwatch()
    with pytest.raises(ProcessingTimeout, match=r"within 0\.5 s"):
        matte(hub(peer, timeout_s=0.5), 20.0)
    assert watch.s > 0.9
    assert len(peer.received) == 2


def test_gone_says_what_to_do(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(HubScript(Reply(410)))
    with pytest.raises(InferenceError.__base__) as caught:
        matte(hub(peer))
    assert "api-inference.huggingface.co is gone" in caught.value.user_action


def test_an_endpoint_is_posted_to_as_it_is(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(HubScript(hub_json(mask())))
    provider = HuggingFace("ZhengPeng7/BiRefNet", route="endpoint", base_url=f"{peer.base_url}/birefnet")
    result = matte(provider)
    assert_right(result)
    assert peer.paths == ["POST /birefnet"]
    assert (result.licence, provider.scales) == ("MIT", ())
