"""A hosted matte made into an answer like the server's: cut-outs, boxes, report, and warnings of what it is not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import (
    InferenceError,
    InvalidOption,
    NoPersonDetected,
    ServerUnavailable,
)
from cutaway.fallback import Fallback, NeedsDetection
from cutaway.providers import Space
from cutaway.result import Origin, read_cut
from PIL import Image

from tests.client.hosted.asking import Server, hub
from tests.client.hosted.peers import (
    SIZE_WH,
    HubScript,
    Peer,
    Reply,
    SpaceScript,
    cutout,
    mask,
    picture,
    png,
)

DOWN = ServerUnavailable("Nothing answers at triton:8001.")


def detected(*boxes: tuple[float, float, float, float]) -> Mapping[str, Any]:
    people = [{"id": number, "box": list(box), "confidence": 0.9} for number, box in enumerate(boxes)]
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.full(len(boxes), 0.9, np.float32),
        "report": [json.dumps({"people": people}).encode()],
    }


def cut(infer: Callable[..., Any], serve: Callable[..., Peer], **more: Any) -> Any:
    served = infer(Fallback([hub(serve(HubScript(png(mask()))))]), **more)
    return read_cut(served.value, Origin(served.provider, "r", 1.0))


@pytest.mark.parametrize("subject", ["all", "people"])
def test_a_hosted_answer_is_one_like_the_server_s(
    subject: str, serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    result = cut(infer, serve, subject=subject)
    (only,) = result.cutouts
    assert only.frame == (0, 0, *SIZE_WH)
    assert result.boxes.tolist() == [[0, 0, *SIZE_WH]]
    pixels = only.numpy()
    assert pixels.shape == (SIZE_WH[1], SIZE_WH[0], 4)
    assert np.array_equal(pixels[..., 3], np.asarray(mask()))
    assert tuple(pixels[SIZE_WH[1] // 2, SIZE_WH[0] // 2, :3]) == (200, 90, 40)
    codes = [notice.code for notice in result.warnings]
    assert codes == ["HOSTED_MODEL"] + (["PEOPLE_NOT_CHECKED"] if subject == "people" else [])
    assert result.report.device == "huggingface"


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"output": "mask"}, "L"),
        ({"output": "webp"}, "RGBA"),
        ({"background": "#00FF00"}, "RGB"),
        ({"background": "blur:8"}, "RGB"),
        ({"decontaminate": False, "feather_px": 4}, "RGBA"),
    ],
)
def test_outputs(options: dict[str, Any], mode: str, serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    (only,) = cut(infer, serve, subject="all", **options).cutouts
    image = only.pil()
    assert (image.mode, image.size) == (mode, SIZE_WH)
    if options.get("background") == "#00FF00":
        assert image.getpixel((2, 2)) == (0, 255, 0)
        assert image.getpixel((SIZE_WH[0] // 2, SIZE_WH[1] // 2)) == (200, 90, 40)
    if options.get("feather_px"):
        assert 20 < image.getchannel("A").getpixel((SIZE_WH[0] // 4, SIZE_WH[1] // 2)) < 235


def test_soft_edges_have_the_foreground_s_own_colour(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    """A red disc on blue with a soft edge: its half-transparent pixels are red and not purple."""
    y, x = np.mgrid[:200, :200]
    alpha = np.clip((60 - np.hypot(x - 100, y - 100)) / 12 + 0.5, 0, 1)[..., None]
    mixed = alpha * (220, 30, 20) + (1 - alpha) * (20, 40, 230)
    soft = Image.fromarray((alpha[..., 0] * 255).astype(np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(mixed.astype(np.uint8)).save(buffer, "PNG")
    errors = {}
    for clean in (True, False):
        served = infer(
            Fallback([hub(serve(HubScript(png(soft))))]), data=buffer.getvalue(), subject="all", decontaminate=clean
        )
        pixels = np.asarray(Image.open(io.BytesIO(served.value["images"][0])))
        edge = (pixels[..., 3] > 60) & (pixels[..., 3] < 200)
        errors[clean] = float(np.abs(pixels[edge][:, :3].astype(int) - (220, 30, 20)).mean())
    assert errors[True] < 12
    assert errors[False] > 60


def test_each_is_cropped_from_the_server_s_detection(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    """The matte failed at the server and its detector still answers; it is asked once, not once per tier."""
    failing, good = serve(SpaceScript(upload=Reply(404))), serve(HubScript(png(mask())))
    detect = Server(detected((40, 24, 80, 72), (80, 24, 120, 72)))
    served = infer(
        Fallback([Space(base_url=failing.base_url), hub(good)]),
        primary=Server(InferenceError("the matte failed")),
        detect=detect,
        subject="each",
        padding_px=10,
    )
    result = read_cut(served.value, Origin(served.provider, "", 0.0))
    assert [cutout.frame for cutout in result.cutouts] == [(30, 14, 90, 82), (70, 14, 130, 82)]
    assert [cutout.id for cutout in result.cutouts] == [0, 1]
    assert [cutout.pil().size for cutout in result.cutouts] == [(60, 68), (60, 68)]
    assert result.scores.tolist() == pytest.approx([0.9, 0.9])
    assert len(detect.turns) == 1
    assert detect.turns[0] <= 10 / 3
    assert result.cutouts[0].numpy()[34, 40, 3] == 255


def test_each_without_detection_is_refused_and_nothing_is_paid(
    serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    peer = serve(HubScript())
    for options in ({"subject": "each"}, {"subject": "people", "select": [1]}):
        for detect in (None, Server(DOWN)):
            with pytest.raises(NeedsDetection) as caught:
                infer(Fallback([hub(peer)], fail_max=1), primary=Server(DOWN), detect=detect, **options)
            assert [entry["provider"] for entry in caught.value.details["tried"]] == ["triton"]
    assert peer.received == []


def test_each_with_given_boxes_needs_no_detection(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    result = cut(infer, serve, subject="each", boxes=[[50, 30, 60, 40], [30, 20, 130, 76]], padding_px=0)
    assert [cutout.frame for cutout in result.cutouts] == [(30, 20, 130, 76), (50, 30, 60, 40)]
    assert "PEOPLE_NOT_SEPARATED" in [notice.code for notice in result.warnings]


def test_nobody_in_the_picture_ends_the_chain(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    peer = serve(HubScript())
    with pytest.raises(NoPersonDetected):
        infer(Fallback([hub(peer)]), primary=Server(DOWN), detect=Server(detected()), subject="each")
    assert peer.received == []


@pytest.mark.parametrize("subject", ["people", "each"])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"boxes": [[0, 0, 20, 20]], "select": [5]}, "select"),
        ({"boxes": [[0, 0, 20, 20], [9, 9, 50, 50]], "select": [0, 2]}, "select"),
        ({"boxes": [[500, 500, 600, 600]]}, "boxes"),
        ({"boxes": [[0, 0, 20, 20], [159.5, 0, 170, 90]]}, "boxes"),
    ],
)
def test_nobody_that_was_named_is_there(
    subject: str, options: dict[str, Any], name: str, serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    """It is refused as the server refuses it, before anything leaves: nobody never means everything."""
    peer = serve(HubScript())
    with pytest.raises(InvalidOption) as caught:
        infer(Fallback([hub(peer)]), primary=Server(DOWN), subject=subject, **options)
    assert caught.value.details["name"] == name
    assert [entry["provider"] for entry in caught.value.details["tried"]] == ["triton"]
    assert peer.received == []


def test_some_of_the_given_boxes_are_chosen(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    result = cut(infer, serve, subject="people", boxes=[[40, 24, 60, 72], [70, 20, 120, 76]], select=[1])
    alpha = result.cutouts[0].numpy()[..., 3]
    assert [person.id for person in result.report.people] == [1]
    assert alpha[48, 50] == 255
    assert alpha[48, 100] == 0


def test_only_the_chosen_people_are_kept(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    """What stands out elsewhere in the picture is not theirs."""
    result = cut(infer, serve, subject="people", boxes=[[40, 24, 60, 72]])
    alpha = result.cutouts[0].numpy()[..., 3]
    assert alpha[48, 50] == 255
    assert alpha[48, 100] == 0


def test_an_upright_picture_is_sent_and_cut(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    image = Image.open(io.BytesIO(picture())).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    peer = serve(HubScript(png(mask())))
    served = infer(Fallback([hub(peer)]), data=buffer.getvalue(), subject="all")
    assert Image.open(io.BytesIO(peer.received[0].body)).size == SIZE_WH
    report = json.loads(served.value["report"][0])
    assert report["picture"] == {"width_px": 160, "height_px": 96, "format": "png", "orientation": 6}


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_kind_of_picture_can_be_sent(mode: str, serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    image = cutout() if mode in ("RGBA", "LA") else Image.open(io.BytesIO(picture()))
    buffer = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(buffer, "PNG")
    else:
        image.convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    peer = serve(HubScript(png(Image.new("L", SIZE_WH, 255))))
    served = infer(Fallback([hub(peer)]), data=buffer.getvalue(), subject="all", output="mask")
    alpha = np.asarray(Image.open(io.BytesIO(served.value["images"][0])))
    assert alpha.max() == 255
    assert (alpha.min() == 0) == (mode in ("RGBA", "LA")), "what was transparent stays so"
