"""A picture over the limits: the copy that is sent is within them, and what comes back belongs to the original.

The server is played by a function that answers for the copy it is given, with an alpha in closed form; with the real
server a picture of twelve megapixels goes through small limits.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import ImageBomb, InvalidFormat, InvalidOption, ResolutionTooLarge, TooManyPixels
from cutaway.contract.headers import check_picture
from cutaway.contract.limits import FIT_LIMITS, INPUT_LIMITS, InputLimits
from cutaway.contract.options import parse_options
from cutaway.downscale import Fitted, downscale
from cutaway.inputs import encode
from cutaway.result import CutResult, Detection, Origin, read_cut, read_detection
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tests.client.driving import DRIVERS, driven
from tests.integration import picture_files as make

SMALL = replace(INPUT_LIMITS, max_long_side_px=400, max_short_side_px=300)
RED, BLUE = (200, 30, 30), (20, 40, 220)


def circle(width: int, height: int, softness: float) -> NDArray[np.float64]:
    """(H, W) 0 to 1: a disc in the middle of the left half, whose edge is as soft as so many shares of the height."""
    y, x = np.ogrid[:height, :width]
    distance = np.hypot((x + 0.5) / height - 0.5 * width / height * 0.8, (y + 0.5) / height - 0.5)
    return np.clip((0.3 - distance) / softness + 0.5, 0, 1)


def photograph(width: int = 1000, height: int = 700, softness: float = 0.02) -> Image.Image:
    """A red disc with fine stripes before blue."""
    alpha = circle(width, height, softness)[..., None]
    person = np.broadcast_to(np.array(RED, float), (height, width, 3)).copy()
    person[:, ::2] += 20
    return Image.fromarray(np.rint(person * alpha + np.array(BLUE) * (1 - alpha)).astype(np.uint8))


def answer(fitted: Fitted, given: dict[str, Any], softness: float = 0.02) -> CutResult:
    """What a server makes of the copy: clean colours, and an alpha that has no colour where it is transparent."""
    options = parse_options(fitted.options(given))
    width, height = fitted.picture.header.width_px, fitted.picture.header.height_px
    alpha = np.rint(circle(width, height, softness) * 255).astype(np.uint8)
    rgba = np.dstack([np.broadcast_to(np.uint8(RED), (height, width, 3)), alpha])
    rows, columns = np.nonzero(alpha > 127)
    box = [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]
    frame = [0, 0, width, height]
    if options.subject == "each":
        pad = options.padding_px
        frame = [int(box[0]) - pad, int(box[1]) - pad, int(box[2]) + pad, int(box[3]) + pad]
    rgba = rgba[frame[1] : frame[3], frame[0] : frame[2]]
    assert options.background.transparent
    image = Image.fromarray(rgba[..., 3]) if options.output == "mask" else Image.fromarray(rgba)
    data = make.saved(image, "WEBP" if options.output == "webp" else "PNG")
    person = {"id": 0, "box": box, "confidence": 0.9}
    cutout = {"id": 0, "people": [0], "box": box, "confidence": 0.9, "frame": frame, "bytes": len(data)}
    report = {"picture": {"width_px": width, "height_px": height}, "people": [person], "cutouts": [cutout]}
    outputs: Any = {"images": [data], "boxes": np.array([box], np.float32), "scores": np.array([0.9], np.float32)}
    return read_cut(outputs | {"report": [json.dumps(report).encode()]}, Origin("triton", "r", 1.0))


def restored(original: Any, limits: InputLimits = SMALL, softness: float = 0.02, **given: Any) -> CutResult:
    fitted = downscale(original, limits=limits)
    result = fitted.restore(answer(fitted, given, softness), parse_options(given))
    assert result.report.width_px, result.report.height_px == fitted.original.size  # type: ignore[union-attr]
    return result


# ------------------------------------------------------------------------------------------------------- the copy


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "path", "file", "pil", "array", "rgba"])
def test_the_copy_is_within_the_limits(kind: str, tmp_path: Path) -> None:
    image = photograph()
    path = tmp_path / "photo.jpg"
    path.write_bytes(make.jpeg(image))
    given: dict[str, Any] = {
        "jpeg": make.jpeg(image),
        "png": make.saved(image, "PNG"),
        "webp": make.saved(image, "WEBP"),
        "path": path,
        "file": io.BytesIO(make.jpeg(image)),
        "pil": image,
        "array": np.asarray(image),
        "rgba": np.dstack([np.asarray(image), np.rint(circle(1000, 700, 0.02) * 255).astype(np.uint8)]),
    }
    fitted = downscale(given[kind], limits=SMALL)
    assert fitted.original is not None and fitted.original.size == (1000, 700)
    assert check_picture(fitted.picture.data, limits=SMALL) == fitted.picture.header
    assert (fitted.picture.header.width_px, fitted.picture.header.height_px) == (400, 280)
    assert fitted.picture.header.format == ("webp" if kind == "rgba" else "jpeg")
    (warning,) = fitted.picture.warnings
    assert warning.code == "FITTED"
    assert warning.details == {"original_px": [1000, 700], "sent_px": [400, 280]}


def test_what_fits_goes_as_it_is() -> None:
    given = {"boxes": [[1, 2, 3, 4]]}
    for image in (make.jpeg(), io.BytesIO(make.jpeg())):
        fitted = downscale(image)
        assert fitted.picture == encode(make.jpeg())
        assert fitted.options(given) is given
        result = object()
        assert fitted.restore(result, parse_options(given)) is result  # type: ignore[type-var]


def test_too_many_bytes_alone_keep_the_size() -> None:
    data = make.saved(photograph(), "BMP")
    fitted = downscale(data, limits=replace(INPUT_LIMITS, max_file_bytes=len(data) - 1))
    assert fitted.picture.header.format == "jpeg"
    assert fitted.scale_xy == (1.0, 1.0) and fitted.original is not None


def test_a_copy_that_stays_too_large_is_made_smaller() -> None:
    noise = Image.fromarray(make.noise(700, 500))
    fitted = downscale(noise, limits=replace(INPUT_LIMITS, max_file_bytes=60_000))
    assert len(fitted.picture.data) <= 60_000
    assert 64 <= fitted.picture.header.height_px < 350


def test_an_orientation_is_applied_before() -> None:
    upright = photograph(700, 1000)
    for orientation in (3, 6):
        stored = make.jpeg(make.stored_for(orientation, upright), exif=make.exif(orientation))
        fitted = downscale(stored, limits=SMALL)
        assert fitted.original is not None and fitted.original.size == (700, 1000)
        copy = np.asarray(Image.open(io.BytesIO(fitted.picture.data)).resize((700, 1000)), float)
        assert np.abs(copy - np.asarray(upright, float)).mean() < 10


def test_mislabelled_files_say_both() -> None:
    fitted = downscale(make.jpeg(photograph()), media_type="image/png", limits=SMALL)
    assert [warning.code for warning in fitted.picture.warnings] == ["MEDIA_TYPE_MISMATCH", "FITTED"]
    with pytest.raises(InvalidFormat):
        downscale(make.jpeg(photograph()), media_type="image/png", limits=SMALL, strict=True)


def test_there_is_an_upper_limit() -> None:
    """Judged by the header: nothing is decoded."""
    side = 14_143  # squared, a little over 200 megapixels
    padding = bytes(side * side * 4 // 1000)
    with pytest.raises(TooManyPixels) as refusal:
        downscale(make.bmp(side, side, 24, b"", compression=1) + padding)
    assert refusal.value.details["max_pixels"] == FIT_LIMITS.max_pixels
    with pytest.raises(TooManyPixels):
        downscale(np.broadcast_to(np.uint8(0), (side, side, 3)))
    with pytest.raises(ImageBomb):
        downscale(make.bmp(9000, 9000, 24, b"", compression=1))
    with pytest.raises(ResolutionTooLarge):
        downscale(Image.new("RGB", (20_000, 100)))  # whose copy would be 38 pixels high


def test_a_picture_above_pillows_own_bound_is_decoded() -> None:
    """A hundred megapixels, of which Pillow would warn, and warnings are errors here."""
    data = make.jpeg(Image.new("RGB", (12_500, 8_000), RED), quality=50)
    fitted = downscale(data + bytes(500_000))
    assert fitted.original is not None and fitted.original.size == (12_500, 8_000)


# ---------------------------------------------------------------------------------------------------- the way back


def test_options_are_in_the_originals_pixels() -> None:
    fitted = downscale(photograph(), limits=SMALL)
    given = {
        "boxes": [[100, 50, 500, 400]],
        "padding_px": 50,
        "feather_px": 10,
        "background": "#112233",
        "select": None,
    }
    assert fitted.options(given) == {
        "boxes": [[40.0, 20.0, 200.0, 160.0]],
        "padding_px": 20,
        "feather_px": 4,
        "background": "transparent",
        "select": None,
    }
    assert fitted.options({})["padding_px"] == 8, "the default is one of the original's pixels, too"
    with pytest.raises(InvalidOption):
        fitted.options({"padding_px": -1})


@pytest.mark.parametrize("output", ["png", "webp"])
def test_a_cut_out_has_the_originals_size_and_pixels(output: str) -> None:
    original = photograph()
    result = restored(original, output=output)
    (cutout,) = result.cutouts
    assert (cutout.frame, cutout.format) == ((0, 0, 1000, 700), output)
    pixels, alpha = cutout.numpy(), np.rint(circle(1000, 700, 0.02) * 255)
    assert pixels.shape == (700, 1000, 4)
    assert np.abs(pixels[..., 3] - alpha).mean() < 1 and np.abs(pixels[..., 3] - alpha).max() < 60
    inside = np.asarray(Image.fromarray(np.uint8(255 * (alpha == 255))).filter(ImageFilter.MinFilter(11))) > 0
    difference = np.abs(pixels[..., :3].astype(int) - np.asarray(original, int))[inside]
    assert difference.size > 100_000
    if output == "png":
        assert difference.max() == 0, "stripes of one pixel included"
    else:
        assert difference.mean() < 6


@pytest.mark.parametrize("softness", [0.002, 0.02, 0.1])
@pytest.mark.parametrize("size", [(1000, 700), (1234, 777), (401, 300)])
def test_no_halo(size: tuple[int, int], softness: float) -> None:
    """Wherever the cut-out is seen on white, it is a mix of the person's colour and white: nothing of the blue."""
    (cutout,) = restored(photograph(*size, softness), softness=softness).cutouts
    pixels = cutout.numpy().astype(float)
    alpha = pixels[..., 3:] / 255
    on_white = pixels[..., :3] * alpha + 255 * (1 - alpha)
    least_blue = 255 * (1 - alpha[..., 0]) + RED[2] * alpha[..., 0]
    excess = (pixels[..., 2] - RED[2] - 20) * alpha[..., 0]
    assert excess.max() < 16, "blue that came through, of 255"
    assert (on_white[..., 2] - least_blue).max() < 36


def test_frames_and_boxes_are_the_originals() -> None:
    result = restored(photograph(), subject="each", padding_px=30)
    (cutout,) = result.cutouts
    rows, columns = np.nonzero(circle(1000, 700, 0.02) > 0.5)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    np.testing.assert_allclose(cutout.box, box, atol=4)
    np.testing.assert_allclose(result.boxes[0], box, atol=4)
    np.testing.assert_allclose(cutout.frame, np.array(box) + np.array((-30, -30, 30, 30)), atol=6)
    assert result.report.people[0].box == pytest.approx(cutout.box)
    assert result.report.cutouts[0].frame == cutout.frame
    assert cutout.pil().size == (cutout.frame[2] - cutout.frame[0], cutout.frame[3] - cutout.frame[1])
    whole = np.rint(circle(1000, 700, 0.02) * 255)
    x1, y1, x2, y2 = cutout.frame
    assert np.abs(cutout.numpy()[..., 3] - whole[y1:y2, x1:x2]).mean() < 1.5, "where the original has it"


def test_masks() -> None:
    (cutout,) = restored(photograph(), output="mask").cutouts
    assert (cutout.pil().mode, cutout.pil().size) == ("L", (1000, 700))
    assert np.abs(cutout.numpy() - circle(1000, 700, 0.02) * 255).mean() < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "LA"])
def test_answers_of_another_mode(mode: str) -> None:
    """A lossy WebP without a transparent pixel is read as RGB, and a server may send anything."""
    fitted = downscale(photograph(), limits=SMALL)
    cut = answer(fitted, {})
    data = make.saved(cut.cutouts[0].pil().convert(mode), "PNG")
    cut = replace(cut, cutouts=(replace(cut.cutouts[0], image=data),))
    for output in ("png", "mask"):
        (cutout,) = fitted.restore(cut, parse_options({"output": output})).cutouts
        assert (cutout.pil().size, cutout.pil().mode) == ((1000, 700), "L" if output == "mask" else "RGBA")


def test_backgrounds() -> None:
    (on_green,) = restored(photograph(), background="#00FF00").cutouts
    assert on_green.numpy().shape == (700, 1000, 3)
    np.testing.assert_array_equal(on_green.numpy()[0, 0], (0, 255, 0))
    (blurred,) = restored(photograph(), background="blur:40").cutouts
    pixels = blurred.numpy().astype(int)
    np.testing.assert_allclose(pixels[10, 10], BLUE, atol=3)
    ring = (circle(1000, 700, 0.02) == 0) & (circle(1000, 700, 0.2) > 0)
    assert np.abs(pixels[ring] - BLUE).max() < 12, "nobody's colour glows into what is behind them"


def test_a_detection() -> None:
    fitted = downscale(photograph(), limits=SMALL)
    cut = answer(fitted, {})
    report = replace(cut.report, cutouts=())
    found = fitted.restore(Detection(cut.boxes, cut.scores, report, cut.origin), parse_options({}))
    np.testing.assert_allclose(found.boxes, cut.boxes * 2.5, rtol=1e-6)
    assert (found.report.width_px, found.report.height_px, type(found)) == (1000, 700, Detection)


def test_the_pixels_of_a_phone() -> None:
    """8160×6144: 48 megapixels, from a JPEG."""
    picture = photograph(2040, 1536).resize((8160, 6144))
    result = restored(make.jpeg(picture, quality=90), limits=INPUT_LIMITS)
    (cutout,) = result.cutouts
    assert cutout.frame == (0, 0, 8160, 6144)
    alpha = np.asarray(cutout.pil().getchannel("A").resize((2040, 1536)), float)
    assert np.abs(alpha - circle(2040, 1536, 0.02) * 255).mean() < 1


# -------------------------------------------------------------------------------------------------- the real server


def test_with_the_real_server(server: Any, samples: list[Path]) -> None:
    """A sample enlarged threefold and sent through small limits agrees with the sample itself."""
    from cutaway import Client

    sample = Image.open(samples[0]).convert("RGB")
    large = sample.resize((sample.width * 3, sample.height * 3), Image.Resampling.BICUBIC)
    limits = replace(INPUT_LIMITS, max_long_side_px=max(sample.size), max_short_side_px=max(sample.size))
    fitted = downscale(large, limits=limits)
    with Client(server.grpc_url) as client:
        direct = client.cut(encode(sample).data)
        result = fitted.restore(client.cut(fitted.picture.data, **fitted.options({})), parse_options({}))
        found = fitted.restore(client.detect(fitted.picture.data), parse_options({}))
    assert result.cutouts[0].pil().size == large.size
    np.testing.assert_allclose(found.boxes, result.boxes)
    own, expected = (
        np.asarray(image.getchannel("A").resize(sample.size), float)
        for image in (result.cutouts[0].pil(), direct.cutouts[0].pil())
    )
    assert np.abs(own - expected).mean() < 3


def test_a_detection_is_read() -> None:
    fitted = downscale(photograph(), limits=SMALL)
    cut = answer(fitted, {})
    raw = json.dumps({**cut.report.raw, "cutouts": []}).encode()
    found = read_detection({"boxes": cut.boxes, "scores": cut.scores, "report": [raw]}, cut.origin)
    assert fitted.restore(found, parse_options({})).report.people[0].box == pytest.approx(
        tuple(2.5 * side for side in cut.report.people[0].box)
    )


@pytest.mark.parametrize("driver", DRIVERS)
def test_both_clients_fit(driver: str, server: Any, samples: list[Path]) -> None:
    """A picture over the limits comes back at its full size, with a warning; without `fit` it is refused."""
    sample = Image.open(samples[0]).convert("RGB")
    large = make.jpeg(sample.resize((4400, 4400 * sample.height // sample.width)))
    with driven(driver, server.grpc_url, fit=True, timeout_s=120) as client:
        result = client.cut(large, background="#00FF00")
        assert result.cutouts[0].pil().size == Image.open(io.BytesIO(large)).size
        assert [warning.code for warning in result.warnings][:1] == ["FITTED"]
        assert client.cut(io.BytesIO(make.jpeg(sample))).cutouts[0].frame == (0, 0, *sample.size)
        assert "FITTED" in [warning.code for warning in client.composite(large, "#FF0000").cut.warnings]
    with driven(driver, server.grpc_url) as client, pytest.raises(ResolutionTooLarge):
        client.cut(large)
