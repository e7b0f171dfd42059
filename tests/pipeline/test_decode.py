"""Every kind of input becomes the same upright 8-bit sRGB picture, or a typed error."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from cutaway.contract.errors import CorruptImage, InvalidFormat
from numpy.typing import NDArray
from PIL import Image
from pipeline.decode import _coloured_jpeg, decode, upright

from tests.integration import picture_files as make

# Primaries of Adobe RGB (1998) adapted to D50, as its profile states them; columns are red, green and blue.
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE_GAMMA = 563 / 256


def icc_profile(primaries: NDArray[np.float64], gamma: float) -> bytes:
    """A version 2 display profile with a matrix and one gamma."""

    def xyz(x: float, y: float, z: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in (x, y, z)))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"A test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)
    description += bytes(-len(description) % 4)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0None\0\0\0\0", b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    for index, letter in enumerate(b"rgb"):
        tags[bytes([letter]) + b"XYZ"] = xyz(*primaries[:, index])
        tags[bytes([letter]) + b"TRC"] = curve
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"\0\0\0\0", 0x02200000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def to_srgb(colour: NDArray[np.float64], primaries: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    """What a colour (3,) 0…255 of such a profile is in sRGB, by the definitions."""
    linear = np.linalg.solve(SRGB, primaries @ (colour / 255) ** gamma).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def flat(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (80, 72), colour)


# ---------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_gives_the_same_picture(orientation: int, kind: str) -> None:
    stored = make.stored_for(orientation, make.picture())
    parameters = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    picture = decode(make.saved(stored, kind, exif=make.exif(orientation), **parameters))
    assert picture.orientation == orientation
    assert np.abs(picture.rgb.astype(int) - make.quadrants()).max() <= (16 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    picture = decode(make.jpeg(exif=make.exif(orientation)))
    assert picture.orientation == 1
    assert (picture.width, picture.height) == (make.WIDTH, make.HEIGHT)


def test_upright_keeps_arrays_contiguous() -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for orientation in range(1, 9):
        assert upright(array, orientation).flags.c_contiguous


# ----------------------------------------------------------------------------------------------------- JPEG


def photograph() -> Image.Image:
    """Coloured noise of several scales, of an odd size: whatever decoders do differently shows in it."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((211, 173), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 20, (173, 211, 3)), 0, 255).astype(np.uint8))


JPEG_KINDS: dict[str, dict[str, object]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 4},
    "stored as RGB": {"keep_rgb": True},
    "coarse": {"quality": 5},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_jpeg_has_the_pixels_that_pillow_reads(kind: str) -> None:
    data = make.saved(photograph(), "JPEG", **JPEG_KINDS[kind])
    with Image.open(io.BytesIO(data)) as image:
        directly = _coloured_jpeg(data, image, [])
        expected = np.asarray(image)
    assert directly is not None, "the short way was not taken"
    assert np.array_equal(directly, expected)
    assert np.array_equal(decode(data).rgb, expected)


def test_what_the_short_way_does_not_take_pillow_reads() -> None:
    whole = make.saved(photograph(), "JPEG")
    # Codes that do not exist within the compressed data: libjpeg warns and goes on, as Pillow lets it.
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes([0xFF, 0x00] * 40) + whole[middle + 80 :]
    for data in (
        make.saved(photograph().convert("L"), "JPEG"),
        make.saved(photograph().convert("CMYK"), "JPEG"),
        damaged,
    ):
        with Image.open(io.BytesIO(data)) as image:
            assert _coloured_jpeg(data, image, []) is None
        assert decode(data).rgb.shape == (173, 211, 3)


def test_bytes_after_a_jpeg_do_no_harm() -> None:
    data = make.saved(photograph(), "JPEG")
    assert np.array_equal(decode(data + bytes(1000)).rgb, decode(data).rgb)


# --------------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize("colour", [(200, 40, 40), (30, 180, 90), (120, 120, 120), (250, 240, 20)])
def test_a_colour_profile_is_turned_to_srgb(colour: tuple[int, int, int]) -> None:
    data = make.saved(flat(colour), "PNG", icc_profile=icc_profile(ADOBE_RGB, ADOBE_GAMMA))
    expected = to_srgb(np.array(colour, float), ADOBE_RGB, ADOBE_GAMMA)
    assert decode(data).rgb[5, 5] == pytest.approx(expected, abs=2)


def test_a_saturated_colour_moves_far() -> None:
    """So that the test above cannot pass by doing nothing."""
    assert np.abs(to_srgb(np.array([30.0, 180, 90]), ADOBE_RGB, ADOBE_GAMMA) - (30, 180, 90)).max() > 20


def test_srgb_by_another_name_changes_nothing() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode(make.saved(make.picture(), "PNG", icc_profile=profile))
    assert np.array_equal(picture.rgb, make.quadrants())
    assert picture.notices == ()


@pytest.mark.parametrize("profile", [b"no profile at all", icc_profile(ADOBE_RGB, 2.2)[:200]])
def test_a_broken_profile_is_ignored_and_said(profile: bytes) -> None:
    picture = decode(make.saved(make.picture(), "PNG", icc_profile=profile))
    assert np.array_equal(picture.rgb, make.quadrants())
    assert [notice.code for notice in picture.notices] == ["ICC_PROFILE_IGNORED"]
    assert picture.notices[0].to_dict()["tier"] == 3


def test_cmyk() -> None:
    picture = decode(make.jpeg(flat((0, 255, 255, 0), "CMYK")))
    assert picture.rgb[5, 5] == pytest.approx((255, 0, 0), abs=8)


def test_grey() -> None:
    assert decode(make.saved(flat((77,), "L"), "PNG")).rgb[5, 5].tolist() == [77, 77, 77]


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_16_bit_is_scaled_and_not_clipped(colour_type: int, channels: int) -> None:
    samples = np.full((72, 80, channels), 0x80FF)
    samples[:, 40:] = 0xFF00
    rgb = decode(make.samples_png(samples, 16, colour_type)).rgb
    assert rgb[0, 0].tolist() == [128, 128, 128]
    assert rgb[0, 79].tolist() == [255, 255, 255]


# --------------------------------------------------------------------------------------------- transparency


def test_transparent_input_keeps_its_alpha_and_colours_and_stands_on_grey() -> None:
    rgba = np.zeros((80, 100, 4), np.uint8)
    rgba[:, :50] = (10, 20, 250, 255)
    rgba[:, 50:75] = (250, 20, 10, 128)
    picture = decode(make.saved(Image.fromarray(rgba), "PNG"))
    assert picture.alpha is not None
    assert picture.own_rgb is not None
    assert np.array_equal(picture.alpha, rgba[..., 3])
    assert np.array_equal(picture.own_rgb, rgba[..., :3])
    assert picture.rgb[0, 0].tolist() == [10, 20, 250]
    assert picture.rgb[0, 60].tolist() == [189, 74, 69]
    assert picture.rgb[0, 90].tolist() == [128, 128, 128]


def test_an_opaque_alpha_is_none() -> None:
    assert decode(make.saved(flat((1, 2, 3, 255), "RGBA"), "PNG")).alpha is None


def test_a_palette_with_a_transparent_entry() -> None:
    indexed = Image.new("P", (80, 80), 0)
    indexed.putpalette([200, 10, 10, 10, 200, 10])
    indexed.paste(1, (40, 0, 80, 80))
    picture = decode(make.saved(indexed, "PNG", transparency=0))
    assert picture.alpha is not None
    assert (picture.alpha[0, 0], picture.alpha[0, 79]) == (0, 255)
    assert picture.rgb[0, 79].tolist() == [10, 200, 10]


# ------------------------------------------------------------------------------------- animation and damage


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [make.picture(), flat((1, 2, 3)).resize((make.WIDTH, make.HEIGHT))]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    picture = decode(make.saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
    assert np.array_equal(picture.rgb, make.quadrants())
    assert [notice.code for notice in picture.notices] == ["FIRST_FRAME_ONLY"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_corrupt(kind: str, part: float) -> None:
    data = make.saved(Image.fromarray(make.noise()), kind)
    with pytest.raises(CorruptImage):
        decode(data[: int(len(data) * part)])


def test_damage_inside_is_corrupt_and_what_pillow_raised_is_the_cause() -> None:
    data = bytearray(make.saved(Image.fromarray(make.noise()), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(CorruptImage) as caught:
        decode(bytes(data))
    assert caught.value.__cause__ is not None


def test_a_declared_type_that_disagrees_is_refused() -> None:
    with pytest.raises(InvalidFormat):
        decode(make.jpeg(), "image/png")


def test_damage_is_silent_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(make.jpeg(Image.fromarray(make.noise(256, 256))))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    decode(bytes(data))  # some colours are wrong, which no decoder tells
    assert capfd.readouterr().err == ""
