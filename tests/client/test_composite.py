"""Composites: pixels against closed forms, places against plain geometry, and no colour of what was cut away.

- Where nothing is scaled every pixel is the rounded mix of cut-out and background by alpha, and nothing else.
- Where something is scaled nothing comes through of what lies under transparent pixels, and edges that the picture cut
  off stay hard.
- A placed cut-out lies where its placement says, within a pixel, for any placement.
- The blurred original holds nothing of who was cut out of it.
- A colour match moves statistics towards the background's, by bounded steps, and never touches alpha.
- Memory is bounded at the largest picture there can be.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway import colour_match as colour
from cutaway.composite import ANCHORS, Blur, Picture, Placement, compose
from cutaway.contract import limits
from cutaway.contract.errors import InferenceError, InvalidFormat, InvalidOption, ResolutionTooLarge, TooManyPixels
from cutaway.drawing import VISIBLE_FROM
from cutaway.inputs import decode_input
from cutaway.report import Frame, parse_report
from cutaway.result import Cutout, CutResult, Origin
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from tests.integration import picture_files as make

Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(7)


def encoded(pixels: Pixels, pil_format: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, pil_format, **more)
    return buffer.getvalue()


def cut_of(source_wh: tuple[int, int], *pieces: tuple[Pixels, tuple[int, int]]) -> CutResult:
    """A result as the server gives it: RGBA cut-outs, each with the corner of its frame."""
    entries, cutouts = [], []
    for number, (pixels, (left, top)) in enumerate(pieces):
        data = encoded(pixels)
        frame: Frame = (left, top, left + pixels.shape[1], top + pixels.shape[0])
        entries.append(
            {"id": number, "people": [number], "box": frame, "confidence": 0.9, "frame": frame, "bytes": len(data)}
        )
        cutouts.append(Cutout(number, (number,), frame, 0.9, frame, data, "png"))
    picture = {"width_px": source_wh[0], "height_px": source_wh[1], "orientation": 1}
    report = parse_report(json.dumps({"picture": picture, "people": [], "cutouts": entries}).encode())
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    return CutResult(*nothing, report, Origin("triton", "id", 1.0), tuple(cutouts))


def noise(width: int, height: int, channels: int = 4) -> Pixels:
    return RNG.integers(0, 256, (height, width, channels), np.uint8)


def flat(width: int, height: int, colour: tuple[int, ...]) -> Pixels:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, len(colour))).copy()


def disc(size: int, rgb: tuple[int, int, int], under: tuple[int, int, int], softness: float = 6.0) -> Pixels:
    """A disc with soft edges; transparent pixels have the colour `under`."""
    y, x = np.ogrid[:size, :size]
    alpha = np.clip((size * 0.4 - np.hypot(x - size / 2 + 0.5, y - size / 2 + 0.5)) / softness + 0.5, 0, 1) * 255
    alpha = np.rint(alpha).astype(np.uint8)
    return np.dstack([np.where(alpha[..., None] > 0, np.uint8(rgb), np.uint8(under)), alpha])


def mixed(cutout: Pixels, behind: Pixels) -> Pixels:
    """The closed form: each channel rounded once."""
    weight = cutout[..., 3:].astype(float) / 255
    return np.rint(cutout[..., :3] * weight + behind * (1 - weight)).astype(np.uint8)


def nothing_of(source_wh: tuple[int, int]) -> bytes:
    """An original that no test looks at."""
    return encoded(flat(*source_wh, (9, 9, 9)))


# ---------------------------------------------------------------------------------------- pixels that are not scaled


def test_onto_a_colour_is_the_closed_form() -> None:
    """Every alpha with every kind of colour, halves included, which must not be rounded down."""
    cutout = noise(300, 200)
    cutout[0, :256, 3] = np.arange(256)
    result = compose(cut_of((300, 200), (cutout, (0, 0))), nothing_of((300, 200)), "#4080C1")
    np.testing.assert_array_equal(result.numpy(), mixed(cutout, flat(300, 200, (0x40, 0x80, 0xC1))))
    assert (result.width_px, result.height_px, result.media_type) == (300, 200, "image/png")


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_any_mix_is_rounded_once(own: int, behind: int, alpha: int) -> None:
    cutout = flat(64, 64, (own, own, own, alpha))
    result = compose(cut_of((64, 64), (cutout, (0, 0))), b"", f"#{behind:02x}{behind:02X}{behind:02x}")
    assert result.pil().getpixel((5, 5)) == (int(np.rint((own * alpha + behind * (255 - alpha)) / 255)),) * 3


def test_onto_a_picture_is_the_closed_form() -> None:
    behind, cutout = noise(300, 200, 3), noise(100, 80)
    cut = cut_of((300, 200), (cutout, (30, 40)))
    expected = behind.copy()
    expected[40:120, 30:130] = mixed(cutout, behind[40:120, 30:130])
    for onto in (behind, Image.fromarray(behind), encoded(behind), io.BytesIO(encoded(behind)), Picture(behind)):
        np.testing.assert_array_equal(compose(cut, nothing_of((300, 200)), onto).numpy(), expected)


def test_onto_nothing_stays_as_it_is() -> None:
    cutout = noise(100, 80)
    result = compose(cut_of((300, 200), (cutout, (30, 40))), nothing_of((300, 200)), "transparent").numpy()
    visible = cutout[..., 3] > 0
    np.testing.assert_array_equal(result[40:120, 30:130][visible], cutout[visible])
    result[40:120, 30:130] = 0
    assert not result.any()


def test_later_cut_outs_lie_above_earlier_ones() -> None:
    """Over, as Porter and Duff have it, also where both are soft."""
    lower, upper = noise(120, 100), noise(120, 100)
    cut = cut_of((120, 100), (lower, (0, 0)), (upper, (0, 0)))
    got = compose(cut, b"", "transparent").numpy().astype(float)
    a, b = lower[..., 3] / 255, upper[..., 3] / 255
    alpha = b + a * (1 - b)
    premultiplied = upper[..., :3] * b[..., None] + lower[..., :3] * (a * (1 - b))[..., None]
    np.testing.assert_allclose(got[..., 3], alpha * 255, atol=1)
    np.testing.assert_allclose(got[..., :3] * alpha[..., None], premultiplied, atol=1.5)
    on_black = compose(cut, b"", "#000000").numpy()
    np.testing.assert_allclose(on_black, premultiplied, atol=1.01)


def test_moving_copies_pixels_and_cuts_off_what_leaves_the_canvas() -> None:
    cutout = noise(100, 80)
    cutout[..., 3] = 255
    cut = cut_of((300, 200), (cutout, (30, 40)))
    result = compose(cut, b"", "#000000", place=Placement(offset_px=(-50, 130)))
    assert result.frames == ((-20, 170, 80, 250),)
    expected = np.zeros((200, 300, 3), np.uint8)
    expected[170:, :80] = cutout[:30, 20:, :3]
    np.testing.assert_array_equal(result.numpy(), expected)


def test_moved_off_the_canvas() -> None:
    cut = cut_of((300, 200), (noise(100, 80), (30, 40)))
    for offset in ((300, 0), (-130, 0), (0, 200), (0, -7000)):
        for scale in (None, 0.1):
            result = compose(cut, b"", "#123456", place=Placement(offset_px=offset, scale=scale))
            np.testing.assert_array_equal(result.numpy(), flat(300, 200, (0x12, 0x34, 0x56)))


def test_nothing_visible_leaves_the_background_alone() -> None:
    cutout = noise(100, 80)
    cutout[..., 3] = 0
    behind = noise(300, 200, 3)
    result = compose(cut_of((300, 200), (cutout, (30, 40))), b"", behind, place=Placement(scale=0.5), match_colour=1)
    np.testing.assert_array_equal(result.numpy(), behind)
    assert result.frames == ((0, 0, 0, 0),)
    assert compose(cut_of((300, 200)), b"", behind).frames == ()


def test_haze_does_not_move_a_cut_out() -> None:
    """What is barely there is drawn, and has no say in where the rest goes."""
    cutout = flat(100, 80, (200, 0, 0, 0))
    cutout[20:60, 30:50, 3] = 255
    cutout[0, 0, 3] = VISIBLE_FROM - 1
    result = compose(cut_of((100, 80), (cutout, (0, 0))), b"", "#000000", place=Placement(anchor="top-left"))
    assert result.frames == ((0, 0, 20, 40),)
    cut = cut_of((100, 80), (cutout, (0, 0)))
    assert compose(cut, b"", "#000000").numpy()[0, 0, 0] == round(200 * (VISIBLE_FROM - 1) / 255)


# --------------------------------------------------------------------------------------------- pixels that are scaled


@pytest.mark.parametrize("under", [(0, 0, 0), (0, 255, 0)])
@pytest.mark.parametrize("scale", [0.05, 0.31, 0.77, 1.6, 3.9])
def test_no_fringes(scale: float, under: tuple[int, int, int]) -> None:
    """A white disc on white is white, whatever colour its transparent pixels have and however it is scaled."""
    cut = cut_of((200, 200), (disc(200, (255, 255, 255), under), (0, 0)))
    for anchor in ("center", "left"):
        place = Placement(anchor=anchor, scale=scale)
        on_white = compose(cut, b"", "#FFFFFF", place=place).numpy()
        assert int(on_white.min()) == 255
        alone = compose(cut, b"", "transparent", place=place).numpy()
        assert int(alone[alone[..., 3] > 0][:, :3].min()) == 255


@pytest.mark.parametrize("scale", [0.15, 0.25, 0.5, 0.8, 1.5, 3.0])
def test_scaling_draws_no_rim(scale: float) -> None:
    """A kernel with negative lobes overshoots by 20 and more at a hard edge; colours must not. Rounded twice, weighted
    by half, they may be off by 4."""
    cut = cut_of((400, 400), (disc(400, (200, 120, 40), (0, 0, 0), softness=1.0), (0, 0)))
    place = Placement(anchor="center", scale=scale)
    alone = compose(cut, b"", "transparent", place=place).numpy().astype(int)
    seen = alone[alone[..., 3] >= 128][:, :3]
    assert len(seen) > 1000
    assert int(np.abs(seen - (200, 120, 40)).max()) <= 4


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.9, 1.2])
def test_scaling_keeps_coverage(scale: float) -> None:
    source = disc(200, (255, 255, 255), (0, 0, 0))
    cut = cut_of((200, 200), (source, (0, 0)))
    box = compose(cut, b"", "#000000").frames[0]
    place = Placement(anchor="center", scale=scale * 200 / 400)
    alone = compose(cut, b"", "transparent", place=place, size_px=(400, 400)).numpy()
    factor = scale * 200 / (box[3] - box[1])
    assert alone[..., 3].sum() / source[..., 3].sum() == pytest.approx(factor**2, rel=0.01)


@pytest.mark.parametrize("scale", [0.37, 1.7])
def test_scaling_is_done_on_weighted_colours(scale: float) -> None:
    """Against the same filter in floating point, every channel times alpha by itself; overshoots are cut off alike."""
    cutout = disc(100, (200, 120, 40), (0, 0, 0))
    cutout[..., :3] = np.clip(cutout[..., :3] + RNG.normal(0, 20, (100, 100, 3)), 0, 255)
    cutout[0, 0, 3] = cutout[-1, -1, 3] = 255  # so that the whole of it is placed
    side = round(100 * scale)
    place = Placement(anchor="top-left", scale=1)
    got = compose(cut_of((100, 100), (cutout, (0, 0))), b"", "#203040", size_px=(side, side), place=place).numpy()
    kernel = Image.Resampling.HAMMING

    def resampled(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((side, side), kernel), float)

    weight = resampled(cutout[..., 3] / 255)[..., None]
    alpha = np.clip(weight, 0, 1)
    own = np.dstack([resampled(cutout[..., c] * (cutout[..., 3] / 255)) for c in range(3)])
    own = np.clip(own / np.maximum(weight, 1e-3), 0, 255) * alpha
    expected = own + (1 - alpha) * (0x20, 0x30, 0x40)
    middle = slice(10, -10)  # without the corners' single pixels: overshoots are cut off between the two passes
    difference = np.abs(got[middle, middle] - expected[middle, middle])
    assert difference.max() < 5 and difference.mean() < 0.5


@pytest.mark.parametrize("size", [(333, 500), (77, 131), (401, 301), (101, 1000), (640, 97)])
def test_edges_that_the_picture_cut_off_stay_hard(size: tuple[int, int]) -> None:
    """Somebody who fills the picture reaches the canvas' edges without a seam, at odd scales as well."""
    cut = cut_of((100, 150), (flat(100, 150, (200, 100, 50, 255)), (0, 0)))
    result = compose(cut, b"", "#000000", size_px=size)
    (x1, y1, x2, y2) = result.frames[0]
    assert (y2, x2 - x1 == size[0] or y1 == 0) == (size[1], True)
    np.testing.assert_array_equal(result.numpy()[y1:y2, x1:x2], flat(x2 - x1, y2 - y1, (200, 100, 50)))


@pytest.mark.parametrize("edge", ["left", "right"])
def test_halves_that_the_picture_cut_off_stay_at_their_edge(edge: str) -> None:
    left = 0 if edge == "left" else 60
    cut = cut_of((100, 100), (flat(40, 50, (200, 100, 50, 255)), (left, 50)))
    result = compose(cut, b"", "#000000", size_px=(703, 301))
    x1, y1, x2, y2 = result.frames[0]
    assert (x1 == 0, x2 == 703) == (edge == "left", edge == "right")
    assert (y1, y2) == (150, 301)
    pixels = result.numpy()
    assert (pixels[-1, x1 + 2 : x2 - 2] == (200, 100, 50)).all()
    assert (pixels[y1 + 3 :, 0 if x1 == 0 else -1] == (200, 100, 50)).all()


# ------------------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("anchor", ANCHORS)
def test_anchors(anchor: str) -> None:
    cut = cut_of((100, 80), (flat(20, 40, (255, 0, 0, 255)), (30, 20)))
    result = compose(cut, b"", "#000000", size_px=(200, 160), place=Placement(anchor=anchor, scale=0.5))
    left = {"left": 0, "right": 160}.get(anchor.rpartition("-")[2], 80)
    top = {"top": 0, "bottom": 80}.get(anchor.partition("-")[0], 40)
    assert result.frames == ((left, top, left + 40, top + 80),)
    expected = np.zeros((160, 200, 3), np.uint8)
    expected[top : top + 80, left : left + 40] = (255, 0, 0)
    np.testing.assert_array_equal(result.numpy(), expected)


def test_scale_alone_keeps_the_ground() -> None:
    cut = cut_of((100, 80), (flat(20, 40, (255, 0, 0, 255)), (30, 20)))
    assert compose(cut, b"", "#000000", place=Placement(scale=0.25)).frames == ((35, 40, 45, 60),)


def test_a_group_keeps_its_distances() -> None:
    red, blue = flat(20, 40, (255, 0, 0, 255)), flat(10, 20, (0, 0, 255, 255))
    cut = cut_of((100, 80), (red, (10, 20)), (blue, (50, 40)))
    result = compose(cut, b"", "#000000", place=Placement(anchor="bottom-right", scale=1))
    assert result.frames == ((0, 0, 40, 80), (80, 40, 100, 80))


def test_everybody_can_have_a_place() -> None:
    red, blue = flat(20, 40, (255, 0, 0, 255)), flat(10, 20, (0, 0, 255, 255))
    cut = cut_of((100, 80), (red, (10, 20)), (blue, (50, 40)))
    places = [Placement(anchor="top-left"), Placement(anchor="bottom", scale=0.5)]
    assert compose(cut, b"", "#000000", place=places).frames == ((0, 0, 20, 40), (40, 40, 60, 80))
    with pytest.raises(InvalidOption, match="place"):
        compose(cut, b"", "#000000", place=places[:1])


def test_onto_a_picture_of_another_shape() -> None:
    """As high, and as far from the ground and its middle, as before, in shares of the canvas; never wider than it."""
    cut = cut_of((100, 200), (flat(20, 100, (255, 0, 0, 255)), (30, 80)))
    assert compose(cut, b"", flat(800, 400, (0, 0, 0))).frames == ((300, 160, 340, 360),)
    wide = cut_of((200, 100), (flat(150, 50, (255, 0, 0, 255)), (20, 40)))
    assert compose(wide, b"", flat(100, 400, (0, 0, 0))).frames == ((0, 327, 100, 360),)


PLACES = st.builds(
    Placement,
    anchor=st.none() | st.sampled_from(ANCHORS),
    scale=st.none() | st.floats(0.05, 2),
    offset_px=st.tuples(st.integers(-60, 60), st.integers(-60, 60)),
)
SIZES = st.tuples(st.integers(20, 300), st.integers(20, 300))


@given(PLACES, SIZES, st.tuples(st.integers(0, 70), st.integers(0, 50)), SIZES)
@settings(max_examples=150)
def test_what_is_drawn_lies_where_the_frame_says(
    place: Placement, canvas_wh: tuple[int, int], corner: tuple[int, int], piece_wh: tuple[int, int]
) -> None:
    width, height = min(piece_wh[0], 100 - corner[0]), min(piece_wh[1], 80 - corner[1])
    cut = cut_of((100, 80), (flat(width, height, (255, 0, 0, 255)), corner))
    result = compose(cut, b"", "transparent", place=place, size_px=canvas_wh)
    (x1, y1, x2, y2) = result.frames[0]
    if place.scale is not None:
        assert y2 - y1 == pytest.approx(place.scale * canvas_wh[1], abs=1)
    found = result.pil().getchannel("A").point(lambda value: 255 if value >= 128 else 0).getbbox()
    inside = max(0, x1), max(0, y1), min(canvas_wh[0], x2), min(canvas_wh[1], y2)
    if found is None:
        assert inside[2] - inside[0] <= 1 or inside[3] - inside[1] <= 1
    else:
        np.testing.assert_allclose(found, inside, atol=1)


# -------------------------------------------------------------------------------------------------------- backgrounds


@pytest.mark.parametrize("size", [(200, 100), (50, 100), (300, 300), (64, 64)])
@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_fits(fit: Any, size: tuple[int, int]) -> None:
    """A picture of four fields: which of them are seen where tells how it was fitted."""
    picture = make.quadrants(120, 120)
    empty = flat(10, 10, (0, 0, 0, 0))
    result = compose(cut_of((64, 64), (empty, (0, 0))), b"", Picture(picture, fit=fit, fill="#010203"), size_px=size)
    pixels = result.numpy()
    assert pixels.shape == (size[1], size[0], 3)
    width, height = size
    side = min(size) if fit == "contain" else max(size)
    across, down = (width, height) if fit == "stretch" else (side, side)
    for column, x in ((0, -0.2), (1, 0.2)):
        for row, y in ((0, -0.2), (1, 0.2)):
            spot = round(height / 2 + y * min(down, height)), round(width / 2 + x * min(across, width))
            np.testing.assert_allclose(pixels[spot], make.QUADRANTS[2 * row + column], atol=2)
    bars = fit == "contain" and width != height
    assert (tuple(pixels[0, 0]) == (1, 2, 3)) == bars


def test_transparent_pictures_stay_transparent() -> None:
    behind = flat(64, 64, (10, 20, 30, 100))
    cut = cut_of((64, 64), (flat(10, 10, (200, 0, 0, 255)), (5, 5)))
    pixels = compose(cut, b"", behind).numpy()
    assert tuple(pixels[0, 0]) == (10, 20, 30, 100)
    assert tuple(pixels[6, 6]) == (200, 0, 0, 255)
    bars = compose(cut, b"", Picture(behind, fit="contain", fill="transparent"), size_px=(200, 64)).numpy()
    assert bars[0, 0, 3] == 0 and bars[32, 100, 3] == 100


def test_pictures_come_upright_and_in_srgb() -> None:
    upright = make.picture(96, 64)
    turned = make.jpeg(upright.transpose(Image.Transpose.ROTATE_90), exif=make.exif(6))
    cut = cut_of((96, 64), (flat(10, 10, (0, 0, 0, 0)), (0, 0)))
    np.testing.assert_allclose(compose(cut, b"", turned).numpy(), np.asarray(upright), atol=12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation: int) -> None:
    stored = make.saved(make.picture(96, 64), "PNG", exif=make.exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
    np.testing.assert_array_equal(np.asarray(decode_input(stored)), np.asarray(upright))


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    stored = make.saved(make.picture(96, 64), "PNG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(np.asarray(decode_input(stored)), np.asarray(make.picture(96, 64)))


def red_on_blue(size: int = 200) -> tuple[CutResult, bytes, Pixels]:
    """Somebody red before something blue, with soft edges that hold a mix of both, and the clean cut-out."""
    cutout = disc(size, (255, 0, 0), (0, 0, 0), softness=8)
    original = mixed(cutout, flat(size, size, (0, 0, 255)))
    return cut_of((size, size), (cutout, (0, 0))), encoded(original), cutout


@pytest.mark.parametrize("px", [1, 5, 20, 100])
def test_a_blurred_original_holds_nothing_of_who_was_cut_out(px: int) -> None:
    cut, original, cutout = red_on_blue()
    result = compose(cut, original, Blur(px))
    np.testing.assert_allclose(result.numpy(), mixed(cutout, flat(200, 200, (0, 0, 255))), atol=4)
    away = compose(cut, original, f"blur:{px}", place=Placement(offset_px=(200, 0)))
    np.testing.assert_allclose(away.numpy(), flat(200, 200, (0, 0, 255)), atol=4)


def test_a_blurred_original_is_pillows_blur_where_nobody_was() -> None:
    source = noise(80, 1300, 3)
    cut = cut_of((80, 1300), (flat(10, 10, (0, 0, 0, 0)), (0, 0)))
    for px in (1, 7, 100):
        expected = np.asarray(Image.fromarray(source).filter(ImageFilter.GaussianBlur(px)))
        np.testing.assert_array_equal(compose(cut, encoded(source), Blur(px)).numpy(), expected)


def test_a_blurred_original_is_upright() -> None:
    """The report and the cut-outs' frames are of the upright picture, the file is not."""
    upright = make.picture(96, 64)
    turned = make.jpeg(upright.transpose(Image.Transpose.ROTATE_90), exif=make.exif(6))
    cut = cut_of((96, 64), (flat(10, 10, (0, 0, 0, 0)), (0, 0)))
    expected = np.asarray(upright.filter(ImageFilter.GaussianBlur(2)))
    np.testing.assert_allclose(compose(cut, turned, Blur(2)).numpy(), expected, atol=12)


def test_a_blurred_original_with_nothing_to_see_beside_the_person() -> None:
    cut = cut_of((64, 64), (flat(64, 64, (1, 2, 3, 255)), (0, 0)))
    assert (compose(cut, nothing_of((64, 64)), Blur(3)).numpy() == (1, 2, 3)).all()


def test_another_picture_than_the_one_that_was_cut() -> None:
    cut = cut_of((64, 64), (flat(10, 10, (0, 0, 0, 0)), (0, 0)))
    with pytest.raises(InvalidOption, match="original"):
        compose(cut, nothing_of((64, 65)), Blur(3))


# ------------------------------------------------------------------------------------------------------------ colours


def matched(cutout: Pixels, behind: Pixels, strength: float) -> Pixels:
    """The cut-out as it comes out, with its own alpha kept apart by putting it beside the statistics' place."""
    cut = cut_of((cutout.shape[1], cutout.shape[0]), (cutout, (0, 0)))
    own, others = colour.histogram_of(cut.cutouts[0].pil()), colour.histogram_of(Image.fromarray(behind))
    table = colour.match_colours([own], others, strength)
    return cutout if table is None else np.asarray(Image.fromarray(cutout).point(table))


@pytest.mark.parametrize("behind", [(30, 60, 120), (240, 200, 150), (20, 20, 20), (90, 160, 60)])
def test_a_match_moves_colours_towards_the_background(behind: tuple[int, int, int]) -> None:
    """Closer in every step of strength, and at most as far as the bounds say."""
    cutout = np.clip(RNG.normal((150, 110, 100, 255), (25, 25, 25, 0), (120, 100, 4)), 0, 255).astype(np.uint8)
    background = np.clip(RNG.normal(behind, 12, (100, 100, 3)), 0, 255).astype(np.uint8)
    goal, start = background.mean(axis=(0, 1)), cutout[..., :3].mean(axis=(0, 1))
    distances, spreads = [], []
    for strength in (0, 0.25, 0.5, 1):
        out = matched(cutout, background, strength)[..., :3]
        moved = out.mean(axis=(0, 1)) - start
        assert abs(moved.mean()) <= limits.MATCH_MAX_LIGHTNESS + 0.5
        assert np.abs(moved - moved.mean()).max() <= limits.MATCH_MAX_TINT + 0.5
        distances.append(np.linalg.norm(goal - out.mean(axis=(0, 1))))
        spreads.append(out.std(axis=(0, 1)).mean())
    assert distances == sorted(distances, reverse=True)
    assert distances[0] - distances[-1] > 2
    assert spreads[-1] < spreads[0], "the background is flatter"


def test_a_match_leaves_alpha_black_and_white_alone() -> None:
    cutout = noise(120, 100)
    cutout[:40] = (0, 0, 0, 255)
    cutout[40:60] = (255, 255, 255, 255)
    out = matched(cutout, flat(80, 80, (200, 120, 60)), 1.0)
    np.testing.assert_array_equal(out[..., 3], cutout[..., 3])
    assert int(out[:40, :, :3].max()) == 0
    assert int(out[40:60, :, :3].min()) == 255


def test_a_match_does_not_change_what_is_behind() -> None:
    behind = noise(300, 200, 3)
    cut = cut_of((300, 200), (flat(60, 60, (200, 40, 40, 255)), (30, 40)))
    plain, result = compose(cut, b"", behind).numpy(), compose(cut, b"", behind, match_colour=0.8).numpy()
    assert (plain[40:100, 30:90] != result[40:100, 30:90]).any()
    plain[40:100, 30:90] = result[40:100, 30:90] = 0
    np.testing.assert_array_equal(plain, result)


def test_a_match_looks_at_the_place() -> None:
    """Before the dark half of a picture people become darker, before the light half lighter."""
    behind = flat(400, 100, (20, 20, 20))
    behind[:, 200:] = (235, 235, 235)
    cut = cut_of((400, 100), (flat(40, 40, (128, 128, 128, 255)), (0, 60)))
    dark = compose(cut, b"", behind, match_colour=1, place=Placement(anchor="bottom-left")).numpy()
    light = compose(cut, b"", behind, match_colour=1, place=Placement(anchor="bottom-right")).numpy()
    assert dark[80, 20, 0] < 122 < 134 < light[80, 380, 0]


def test_nothing_opaque_is_not_judged() -> None:
    cutout = flat(100, 80, (200, 40, 40, 100))
    assert matched(cutout, flat(80, 80, (0, 0, 0)), 1.0) is cutout


@pytest.mark.parametrize("onto", ["#336699", "transparent", Blur(5)])
def test_a_match_needs_another_picture(onto: Any) -> None:
    cut = cut_of((64, 64), (flat(10, 10, (200, 0, 0, 255)), (5, 5)))
    with pytest.raises(InvalidOption) as refusal:
        compose(cut, nothing_of((64, 64)), onto, match_colour=0.5)
    assert refusal.value.details["name"] == "match_colour"


# ------------------------------------------------------------------------------------------------- the finished file


@pytest.mark.parametrize(
    ("output", "pil_format", "name", "wrong"),
    [("png", "PNG", "a.png", "a.jpg"), ("webp", "WEBP", "a.webp", "a.png"), ("jpeg", "JPEG", "a.JPG", "a")],
)
def test_outputs(output: str, pil_format: str, name: str, wrong: str, tmp_path: Path) -> None:
    cut = cut_of((96, 128), (flat(20, 20, (200, 0, 0, 255)), (5, 5)))
    result = compose(cut, b"", make.quadrants(), output=output)
    image = Image.open(io.BytesIO(result.data))
    assert (image.format, image.size, result.media_type) == (pil_format, (96, 128), f"image/{output}")
    assert result.cut is cut
    assert result.numpy().shape == (128, 96, 3)
    np.testing.assert_allclose(result.numpy()[15, 15], (200, 0, 0), atol=12)
    assert Image.open(io.BytesIO(result._repr_png_())).format == "PNG"
    path = result.save(tmp_path / name)
    assert path.read_bytes() == result.data
    result.save(path)
    with pytest.raises(FileExistsError):
        result.save(path, overwrite=False)
    with pytest.raises(ValueError, match="name it"):
        result.save(tmp_path / wrong)
    assert "data" not in repr(result)


def test_quality() -> None:
    cut = cut_of((300, 200), (flat(20, 20, (200, 0, 0, 255)), (5, 5)))
    behind = noise(300, 200, 3)
    for output in ("webp", "jpeg"):
        low, high = (len(compose(cut, b"", behind, output=output, quality=quality).data) for quality in (20, 95))
        assert low < high / 2


def test_a_transparent_webp() -> None:
    cut = cut_of((64, 64), (flat(20, 20, (200, 0, 0, 255)), (5, 5)))
    pixels = compose(cut, b"", "transparent", output="webp").numpy()
    assert pixels.shape == (64, 64, 4) and pixels[0, 0, 3] == 0 and pixels[10, 10, 3] == 255


# ----------------------------------------------------------------------------------------------------------- refusals

CUT = cut_of((64, 64), (flat(20, 20, (200, 0, 0, 255)), (5, 5)))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("output", {"output": "gif"}),
        ("output", {"output": "jpeg", "onto": "transparent"}),
        ("quality", {"quality": 0}),
        ("quality", {"quality": 101}),
        ("quality", {"quality": True}),
        ("match_colour", {"match_colour": -0.1}),
        ("match_colour", {"match_colour": float("nan")}),
        ("match_colour", {"match_colour": "1"}),
        ("size_px", {"size_px": (0, 100)}),
        ("size_px", {"size_px": (1.5, 100)}),
        ("size_px", {"size_px": 100}),
        ("place", {"place": [None]}),
        ("background", {"onto": "#12345"}),
        ("background", {"onto": "#GGGGGG"}),
        ("background", {"onto": "blur:0"}),
        ("background", {"onto": "blur:101"}),
    ],
)
def test_options_that_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption) as refusal:
        compose(CUT, nothing_of((64, 64)), **{"onto": "#000000", **wrong})
    assert refusal.value.details["name"] == name
    assert refusal.value.details["allowed"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Placement, {"anchor": "middle"}),
        (Placement, {"scale": 0}),
        (Placement, {"scale": 5}),
        (Placement, {"scale": float("nan")}),
        (Placement, {"offset_px": (1.5, 0)}),
        (Placement, {"offset_px": 3}),
        (Placement, {"offset_px": (10**9, 0)}),
        (Placement, {"offset_px": ("1", "2")}),
        (Blur, {"px": 0}),
        (Blur, {"px": 101}),
        (Blur, {"px": 2.5}),
        (Picture, {"image": b"", "fit": "fill"}),
        (Picture, {"image": b"", "fill": "white"}),
    ],
)
def test_wishes_that_are_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        kind(**wrong)


def test_results_have_limits() -> None:
    with pytest.raises(TooManyPixels):
        compose(CUT, b"", "#000000", size_px=(10**5, 10**5))
    with pytest.raises(ResolutionTooLarge):
        compose(CUT, b"", "#000000", size_px=(7681, 100))
    assert compose(CUT, b"", "#000000", size_px=(1, 1)).width_px == 1


def test_pictures_that_are_none() -> None:
    with pytest.raises(InvalidFormat):
        compose(CUT, b"", b"nonsense")
    with pytest.raises(InvalidFormat, match="web address"):
        compose(CUT, b"", "https://example.com/beach.jpg")
    with pytest.raises(FileNotFoundError):
        compose(CUT, b"", "no-such-beach.jpg")
    with pytest.raises(TypeError):
        compose(CUT, b"", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_cut_outs_that_are_not_transparent(channels: int) -> None:
    pixels = noise(20, 20, channels)
    cut = cut_of((64, 64), (pixels[..., 0] if channels == 1 else pixels, (0, 0)))
    with pytest.raises(InvalidOption, match="transparent background"):
        compose(cut, b"", "#000000")


def test_cut_outs_that_contradict_their_report() -> None:
    from dataclasses import replace

    (cutout,) = CUT.cutouts
    for wrong in (replace(cutout, frame=(5, 5, 26, 25)), replace(cutout, image=cutout.image[:60])):
        with pytest.raises(InferenceError):
            compose(replace(CUT, cutouts=(wrong,)), b"", "#000000")


# ------------------------------------------------------------------------------------------------------------- memory

LARGE = """
import io, json, re
from PIL import Image, ImageDraw
import numpy as np
from cutaway.composite import Blur, Placement, compose
from cutaway.report import parse_report
from cutaway.result import Cutout, CutResult, Origin

def files():
    image = Image.new("RGB", (W, H), (90, 120, 60))
    draw = ImageDraw.Draw(image)
    for x in range(0, W, 40):
        draw.line((x, 0, W - x, H), (x % 256, 90, 200), 3)
    original = io.BytesIO()
    image.save(original, "JPEG", quality=80)
    mask = Image.new("L", (W, H))
    ImageDraw.Draw(mask).ellipse((W // 50, H // 50, W - W // 50, H - 1), 255)
    image.putalpha(mask)
    cutout = io.BytesIO()
    image.save(cutout, "PNG", compress_level=1)
    return original.getvalue(), cutout.getvalue()

original, png = files()
frame = [0, 0, W, H]
entry = {"id": 0, "people": [], "box": frame, "confidence": 1, "frame": frame, "bytes": len(png)}
picture = {"width_px": W, "height_px": H}
report = parse_report(json.dumps({"picture": picture, "people": [], "cutouts": [entry]}).encode())
cutout = Cutout(0, (), (0, 0, 1, 1), 1.0, (0, 0, W, H), png, "png")
cut = CutResult(np.zeros((0, 4)), np.zeros(0), report, Origin("t", "", 0.0), (cutout,))
if KIND == "blur":
    compose(cut, original, Blur(30), output="jpeg")
else:
    place = Placement(anchor="bottom", scale=0.9)
    compose(cut, original, original, match_colour=1, place=place, output="jpeg")
# Not getrusage, which counts what the process was a copy of before it became this one, too.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux' /proc")
@pytest.mark.parametrize(("kind", "size", "most_mib"), [("picture", (7680, 4320), 750), ("blur", (3840, 2160), 350)])
def test_memory_is_bounded(kind: str, size: tuple[int, int], most_mib: int) -> None:
    """33 megapixels are the most there can be: cut-out, background and result then have 133 MB each as Pillow holds
    them, and a little comes on top. A blur takes no more per pixel."""
    path = [str(Path(__file__).parents[2] / "client")]
    script = f"import sys; sys.path[:0] = {path!r}\nKIND, (W, H) = {kind!r}, {size!r}\n{LARGE}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < most_mib, "MiB at the peak, interpreter included"
