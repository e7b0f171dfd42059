"""What each provider sends and what it makes of good answers, cold starts, odd outputs and being given up."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cutaway.errors import CorruptImage, InferenceError, InvalidOption, Overloaded, ResolutionTooLarge
from cutaway.providers import HuggingFace, InvalidAnswer, LicenceNotAccepted, Matte, Model, Replicate, Space
from cutaway.resilience import Deadline, RetryPolicy
from PIL import Image

from tests.client.hosted.peers import (
    SIZE_WH,
    TOKEN,
    HubScript,
    Peer,
    Received,
    ReplicateScript,
    Reply,
    SpaceScript,
    Stopwatch,
    as_json,
    cutout,
    encoded,
    hub_json,
    mask,
    picture,
    png,
)

QUICK = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)


def assert_right(result: Matte) -> None:
    expected = np.asarray(mask())
    assert result.alpha.dtype == np.uint8
    assert result.alpha.shape == (SIZE_WH[1], SIZE_WH[0])
    assert float(np.abs(result.alpha.astype(int) - expected).mean()) < 3
    assert result.elapsed_ms > 0


def hub(peer: Peer, **more: Any) -> HuggingFace:
    return HuggingFace(base_url=peer.base_url, accept_noncommercial=True, retry=QUICK, **more)


# ----------------------------------------------------------------------------------------------- Hugging Face

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
    names: tuple[str, ...], expected: str, serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(name, "a" if name == "HUGGINGFACE_TOKEN" else "b")
    peer = serve(HubScript())
    provider = hub(peer)
    provider.matte(picture(), "image/png", Deadline(5))
    provider.close()
    assert peer.received[0].headers["authorization"] == f"Bearer {expected}"


LOADING = as_json({"error": "Model briaai/RMBG-1.4 is currently loading", "estimated_time": 0.05}, 503)


@pytest.mark.parametrize(("loading", "served"), [(1, True), (4, True), (5, False)])
def test_cold_start_is_waited_for_five_times_at_most(
    loading: int, served: bool, serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutaway.limits.RETRY_FIRST_DELAY_S", 0.01)
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
    watch = Stopwatch()
    with pytest.raises(Overloaded) as caught:
        matte(hub(peer))
    assert caught.value.retry_after == 579.3
    assert len(peer.received) == 1
    assert watch.s < 1


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


class FalScript:
    """fal's queue behind the router."""

    def __init__(self, *states: str, url: str | None = None) -> None:
        self.base = ""
        self._states = list(states)
        self._url = url or "data:image/png;base64," + base64.b64encode(encoded(cutout())).decode()

    def __call__(self, received: Received) -> Reply:
        response_url = "https://queue.fal.run/fal-ai/bria/requests/r1"
        if received.path.startswith("/out.png"):
            return png(cutout())
        if received.method == "GET" and "/status" not in received.path:
            return as_json({"image": {"url": self._url.replace("{base}", self.base), "content_type": "image/png"}})
        return as_json({"request_id": "r1", "status": self._states.pop(0), "response_url": response_url})


@pytest.mark.parametrize("url", [None, "{base}/out.png"])
def test_fal_queue(
    url: str | None, serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutaway.providers.huggingface.FAL_POLL_S", 0.01)
    peer = serve(FalScript("IN_QUEUE", "IN_PROGRESS", "COMPLETED", url=url))
    provider = HuggingFace(
        "briaai/RMBG-2.0", route="fal-ai", base_url=peer.base_url, accept_noncommercial=True, token=TOKEN
    )
    assert_right(matte(provider))
    expected = [
        "POST /fal-ai/fal-ai/bria/background/remove?_subdomain=queue",
        "GET /fal-ai/fal-ai/bria/requests/r1/status?_subdomain=queue",
        "GET /fal-ai/fal-ai/bria/requests/r1/status?_subdomain=queue",
        "GET /fal-ai/fal-ai/bria/requests/r1?_subdomain=queue",
    ]
    assert peer.paths == expected + (["GET /out.png"] if url else [])
    form = peer.received[0].json()
    assert form["sync_mode"] is True
    assert form["image_url"] == "data:image/png;base64," + base64.b64encode(picture()).decode()


# -------------------------------------------------------------------------------------------------- Replicate

OUTPUTS = {
    "file": "{base}/files/out.png",
    "list": ["{base}/files/out.png"],
    "data URI": "data:image/png;base64," + base64.b64encode(encoded(cutout())).decode(),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_replicate(
    output: str, serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutaway.providers.replicate.POLL_FIRST_S", 0.02)
    script = ReplicateScript(states=["starting", "processing", "succeeded"], output=OUTPUTS[output])
    peer = serve(script)
    result = matte(Replicate("851-labs/background-remover", base_url=peer.base_url, token=TOKEN))
    assert_right(result)
    assert result.details == {"prediction": "p1", "predict_time_s": 1.25}
    assert script.cancelled == 0
    polls = ["GET /v1/predictions/p1"] * 2
    assert peer.paths == ["POST /v1/predictions", *polls] + (["GET /files/out.png"] if output != "data URI" else [])
    created = peer.received[0]
    assert created.headers["authorization"] == f"Bearer {TOKEN}"
    assert created.headers["prefer"] == "wait=4"
    assert created.headers["cancel-after"] == "10s"
    form = created.json()
    assert form["version"].startswith("851-labs/background-remover:a029dff3")
    assert form["input"]["image"] == "data:image/png;base64," + base64.b64encode(picture()).decode()
    assert form["input"]["background_type"] == "rgba"


@pytest.mark.parametrize(
    ("script", "expected", "words"),
    [
        ({"states": ["failed"], "error": "CUDA error"}, InferenceError, "CUDA error"),
        ({"states": ["failed"], "error": "cannot identify image file"}, CorruptImage, "cannot identify"),
        ({"states": ["canceled"]}, InferenceError, "canceled"),
        ({"states": ["aborted"]}, InferenceError, "aborted"),
        ({"states": ["pondering"]}, InvalidAnswer, "not known"),
        ({"states": ["succeeded"], "output": None}, InvalidAnswer, "without an output"),
        ({"states": ["succeeded"], "output": []}, InvalidAnswer, "without an output"),
        ({"states": ["succeeded"], "output": {"url": 1}}, InvalidAnswer, "without an output"),
        ({"states": ["succeeded"], "file": as_json({"detail": "gone"}, 404)}, Exception, "gone"),
        ({"states": ["succeeded"], "file": as_json({})}, InvalidAnswer, "instead of a picture"),
        (
            {"states": ["succeeded"], "create": as_json({"id": "../../x", "status": "starting"})},
            InvalidAnswer,
            "no pred",
        ),
    ],
)
def test_replicate_ends_badly(
    script: dict[str, Any],
    expected: type[Exception],
    words: str,
    serve: Callable[..., Peer],
    matte: Callable[..., Any],
) -> None:
    running = ReplicateScript(**script)
    peer = serve(running)
    with pytest.raises(expected, match=words):
        matte(Replicate(base_url=peer.base_url, retry=QUICK))
    assert running.cancelled == 0, "what has ended needs no cancelling"


def test_replicate_cancels_when_the_task_is_cancelled(serve: Callable[..., Peer]) -> None:
    script = ReplicateScript(states=["starting"])
    peer = serve(script)

    async def main() -> None:
        task = asyncio.create_task(Replicate(base_url=peer.base_url).matte_async(picture(), "image/png", Deadline(20)))
        while len(peer.received) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert script.cancelled == 1


def test_replicate_cancels_on_ctrl_c(serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    script = ReplicateScript(states=["starting"])
    peer = serve(script)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cutaway.providers.exchange.time.sleep", interrupted)
    provider = Replicate(base_url=peer.base_url)
    with pytest.raises(KeyboardInterrupt):
        provider.matte(picture(), "image/png", Deadline(20))
    provider.close()
    assert script.cancelled == 1


def test_replicate_refuses_what_names_no_model() -> None:
    with pytest.raises(InvalidOption, match="names no model"):
        Replicate("https://replicate.com/owner/name")


# ------------------------------------------------------------------------------------------------------ Space


def test_space(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(SpaceScript())
    result = matte(Space(base_url=peer.base_url, arguments=["hi"]))
    assert_right(result)
    assert peer.paths == [
        "POST /gradio_api/upload",
        "POST /gradio_api/call/png",
        "GET /gradio_api/call/png/e1",
        "GET /gradio_api/file=/tmp/gradio/cd34/out.png",
    ]
    upload = peer.received[0]
    assert b'name="files"; filename="picture.png"\r\nContent-Type: image/png\r\n\r\n' + picture() in upload.body
    file, argument = peer.received[1].json()["data"]
    assert file == {
        "path": "/tmp/gradio/ab12/picture.png",
        "orig_name": "picture.png",
        "mime_type": "image/png",
        "meta": {"_type": "gradio.FileData"},
    }
    assert argument == "hi"
    assert "authorization" not in upload.headers


SLIDER = [
    {"path": "/tmp/a.png", "url": "{base}/gradio_api/file=/tmp/a.png"},
    {"path": "/tmp/b.png", "url": "{base}/gradio_api/file=/tmp/b.png"},
]
EVENTS = {
    "a slider's pair": (f"event: complete\ndata: {json.dumps([SLIDER])}\n\n", "/tmp/a.png"),
    "path without url": ('event: complete\ndata: [{"path": "/tmp/x y.png", "url": null}]\n\n', "/tmp/x%20y.png"),
    "a component around it": ('event: complete\ndata: [{"value": {"path": "/tmp/x.png"}}, "12 s"]\n\n', "/tmp/x.png"),
    "carriage returns": ('event: complete\r\ndata: [{"path": "/tmp/x.png"}]\r\n\r\n', "/tmp/x.png"),
    "generating before": (
        'event: generating\ndata: [null]\n\nevent: complete\ndata: [{"path": "/tmp/x.png"}]\n\n',
        "/tmp/x.png",
    ),
}


@pytest.mark.parametrize("events", EVENTS)
def test_space_events(events: str, serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(SpaceScript(events=EVENTS[events][0]))
    assert_right(matte(Space(base_url=peer.base_url)))
    assert peer.paths[-1] == f"GET /gradio_api/file={EVENTS[events][1]}"


@pytest.mark.parametrize(
    ("events", "expected", "words"),
    [
        ("event: error\ndata: null\n\n", InferenceError, "failed"),
        ('event: error\ndata: {"error": "No GPU quota left"}\n\n', InferenceError, "No GPU quota left"),
        ('event: error\ndata: "cannot identify image file"\n\n', CorruptImage, "cannot identify"),
        ("event: heartbeat\ndata: null\n\n", InvalidAnswer, "without a result"),
        ("event: complete\ndata: {oops\n\n", InvalidAnswer, "without a result"),
        ('event: complete\ndata: ["no file"]\n\n', InvalidAnswer, "without a file"),
        ("", InvalidAnswer, "without a result"),
    ],
)
def test_space_ends_badly(
    events: str, expected: type[Exception], words: str, serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    peer = serve(SpaceScript(events=events))
    with pytest.raises(expected, match=words):
        matte(Space(base_url=peer.base_url))


def test_events_whose_server_keeps_the_connection_open(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    events = b'event: complete\ndata: [{"path": "/tmp/x.png"}]\n\n'
    open_end = Reply(body=events * 2, headers={"Content-Type": "text/event-stream"}, hang="body")
    peer = serve(SpaceScript(stream=open_end))
    watch = Stopwatch()
    assert_right(matte(Space(base_url=peer.base_url)))
    assert watch.s < 2


def test_a_sleeping_space_says_so(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(SpaceScript(upload=Reply(body=b"<html>Sleeping", headers={"Content-Type": "text/html"})))
    with pytest.raises(InvalidAnswer, match="asleep"):
        matte(Space(base_url=peer.base_url))


def test_the_address_of_a_space() -> None:
    assert Space("Not_Lain/background.removal").base_url == "https://not-lain-background-removal.hf.space"


# -------------------------------------------------------------------------------------------------- upscaling


def upscale(provider: Any, scale: int, data: bytes, driver: str) -> Any:
    if driver == "threads":
        try:
            return provider.upscale(data, "image/png", scale, Deadline(10))
        finally:
            provider.close()
    return asyncio.run(_upscale(provider, scale, data))


async def _upscale(provider: Any, scale: int, data: bytes) -> Any:
    return await provider.upscale_async(data, "image/png", scale, Deadline(10))


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("which", ["huggingface", "replicate", "space"])
def test_upscale(which: str, scale: int, driver: str, serve: Callable[..., Peer]) -> None:
    larger = png(Image.new("RGB", (SIZE_WH[0] * scale, SIZE_WH[1] * scale)))
    if which == "huggingface":
        peer = serve(HubScript(larger))
        provider: Any = hub(peer)
    elif which == "replicate":
        peer = serve(ReplicateScript(states=["succeeded"], file=larger))
        provider = Replicate(base_url=peer.base_url)
    else:
        peer = serve(SpaceScript(file=larger))
        provider = Space(base_url=peer.base_url, fn=None, upscale_fn="up")
    result = upscale(provider, scale, picture(), driver)
    assert (result.width_px, result.height_px) == (SIZE_WH[0] * scale, SIZE_WH[1] * scale)
    assert (result.media_type, result.provider) == ("image/png", which)
    if which == "huggingface":
        name = {2: "ai-forever/Real-ESRGAN", 4: "stabilityai/stable-diffusion-x4-upscaler"}[scale]
        assert peer.paths == [f"POST /hf-inference/models/{name}"]
    elif which == "replicate":
        form = peer.received[0].json()
        assert form["version"].startswith("nightmareai/real-esrgan:")
        assert form["input"].items() >= {"scale": scale, "face_enhance": False}.items()
    else:
        assert peer.received[1].json()["data"][1] == scale


def test_upscaling_is_refused_before_anything_is_sent(serve: Callable[..., Peer]) -> None:
    peer = serve(ReplicateScript())
    provider = Replicate(base_url=peer.base_url)
    with pytest.raises(InvalidOption, match="allowed is 2, 4"):
        provider.upscale(picture(), "image/png", 3, Deadline(5))
    with pytest.raises(ResolutionTooLarge):
        provider.upscale(picture(size_wh=(2000, 1500)), "image/png", 2, Deadline(5))
    with pytest.raises(InvalidOption, match="does not upscale"):
        Replicate(base_url=peer.base_url, upscale_model=None).upscale(picture(), "image/png", 2, Deadline(5))
    assert peer.received == []


def test_an_upscaled_picture_of_another_size_is_refused(serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript(png(Image.new("RGB", SIZE_WH))))
    provider = hub(peer)
    with pytest.raises(InvalidAnswer, match="160×96 pixels where 320×192"):
        provider.upscale(picture(), "image/png", 2, Deadline(5))
    provider.close()


# --------------------------------------------------------------------------------------------------- licences


@pytest.mark.parametrize("name", ["briaai/RMBG-1.4", "briaai/RMBG-2.0"])
def test_noncommercial_weights_need_consent(name: str) -> None:
    with pytest.raises(LicenceNotAccepted) as caught:
        HuggingFace(name)
    assert caught.value.details["name"] == "accept_noncommercial"
    assert isinstance(caught.value, ValueError)
    assert not HuggingFace(name, accept_noncommercial=True).model.commercial


def test_consent_is_needed_for_a_model_that_says_so_itself() -> None:
    model = Model("owner/name", "CC BY-NC 4.0", commercial=False)
    for make in (lambda: Space(model=model), lambda: Replicate(model), lambda: Replicate(upscale_model=model)):
        with pytest.raises(LicenceNotAccepted):
            make()


def test_every_provider_tells_its_cost_and_licence() -> None:
    for provider in (HuggingFace(accept_noncommercial=True), Replicate(), Space()):
        assert provider.cost
        assert provider.licence
        assert "Licence" in (type(provider).__doc__ or "")
        assert "Cost" in (type(provider).__doc__ or "")


def test_one_provider_serves_many_threads(serve: Callable[..., Peer]) -> None:
    """Answers never cross: each thread sends a picture of its own size and gets a matte of that size."""

    def answer(received: Received) -> Reply:
        size = Image.open(io.BytesIO(received.body)).size
        return png(mask(size))

    peer = serve(answer)
    provider = hub(peer)
    wrong: list[Any] = []

    def work(number: int) -> None:
        size = (100 + number, 80 + number)
        result = provider.matte(picture(size_wh=size), "image/png", Deadline(20))
        if result.alpha.shape != (size[1], size[0]):
            wrong.append(result)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    provider.close()
    assert not wrong
    assert len(peer.received) == 16
