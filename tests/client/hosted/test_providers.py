"""What all providers share: upscaling, licences, threads."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cutaway.contract.errors import InvalidOption, ResolutionTooLarge
from cutaway.providers import HuggingFace, InvalidAnswer, LicenceNotAccepted, Model, Replicate, Space
from cutaway.resilience import Deadline
from PIL import Image

from tests.client.hosted.asking import hub
from tests.client.hosted.peers import (
    SIZE_WH,
    HubScript,
    Peer,
    Received,
    ReplicateScript,
    Reply,
    SpaceScript,
    mask,
    picture,
    png,
)


def upscale(provider: Any, scale: int, data: bytes) -> Any:
    return asyncio.run(provider.upscale(data, "image/png", scale, Deadline(10)))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("which", ["huggingface", "replicate", "space"])
def test_upscale(which: str, scale: int, serve: Callable[..., Peer]) -> None:
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
    result = upscale(provider, scale, picture())
    assert (result.width_px, result.height_px) == (SIZE_WH[0] * scale, SIZE_WH[1] * scale)
    assert (result.media_type, result.provider) == ("image/png", which)
    if which == "huggingface":
        name = {2: "ai-forever/Real-ESRGAN", 4: "stabilityai/stable-diffusion-x4-upscaler"}[scale]
        assert peer.paths == [f"POST /hf-inference/models/{name}"]
    elif which == "replicate":
        form = peer.received[0].json()
        assert form["version"].startswith("nightmareai/real-esrgan:")
        assert form["input"]["scale"] == scale
    else:
        assert peer.received[1].json()["data"][1] == scale


def test_upscaling_is_refused_before_anything_is_sent(serve: Callable[..., Peer]) -> None:
    peer = serve(ReplicateScript())
    provider = Replicate(base_url=peer.base_url)
    with pytest.raises(InvalidOption, match="allowed is 2, 4"):
        upscale(provider, 3, picture())
    with pytest.raises(ResolutionTooLarge):
        upscale(provider, 2, picture(size_wh=(2000, 1500)))
    with pytest.raises(InvalidOption, match="does not upscale"):
        upscale(Replicate(base_url=peer.base_url, upscale_model=None), 2, picture())
    assert peer.received == []


def test_an_upscaled_picture_of_another_size_is_refused(serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript(png(Image.new("RGB", SIZE_WH))))
    with pytest.raises(InvalidAnswer, match="160×96 pixels where 320×192"):
        upscale(hub(peer), 2, picture())


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        (HuggingFace, "briaai/RMBG-1.4"),
        (HuggingFace, "briaai/RMBG-2.0"),
        (HuggingFace, "BRIAAI/rmbg-1.4"),
        (HuggingFace, " briaai/RMBG-1.4\n"),
        (HuggingFace, "briaai/BRIA-3.9-something-new"),
        (HuggingFace, "somebody/RMBG-1.4-onnx"),
        (HuggingFace, Model("briaai/RMBG-2.0")),
        (HuggingFace, "fal-ai/bria/background/remove"),
        (Replicate, "somebody/rmbg-2.0"),
        (Replicate, "somebody/Bria-RMBG:" + 64 * "0"),
        (Space, "briaai/BRIA-RMBG-1.4"),
    ],
)
def test_noncommercial_weights_need_consent(provider: Any, name: str | Model) -> None:
    """However the name is written, and whoever serves them."""
    with pytest.raises(LicenceNotAccepted) as caught:
        provider(name)
    assert caught.value.details["name"] == "accept_noncommercial"
    assert isinstance(caught.value, ValueError)
    assert not provider(name, accept_noncommercial=True).model.commercial


def test_a_model_that_says_its_own_licence_is_believed() -> None:
    bought = Model("briaai/RMBG-2.0", "Bria's licence, bought in 2026")
    assert HuggingFace(bought).licence == bought.licence
    assert HuggingFace(" zhengpeng7/birefnet ").model.name == "ZhengPeng7/BiRefNet"
    assert "MIT" in Replicate(" Men1scus/BiRefNet").licence


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
        result = asyncio.run(provider.matte(picture(size_wh=size), "image/png", Deadline(20)))
        if result.alpha.shape != (size[1], size[0]):
            wrong.append(result)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(peer.received) == 16
