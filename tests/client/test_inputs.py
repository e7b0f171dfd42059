"""Whatever callers hand over arrives at the server as the same pixels, or is refused before anything is sent."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.errors import (
    CorruptImage,
    FileTooLarge,
    InvalidFormat,
    ResolutionTooLarge,
    ResolutionTooSmall,
    TooManyPixels,
)
from cutaway.inputs import LossyEncodingWarning, declared_type, encode
from cutaway.limits import INPUT_LIMITS
from PIL import Image, ImageCms

from tests.integration import picture_files as make

MIB = 1024 * 1024


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# ------------------------------------------------------------------------------------------------ files and bytes


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_go_as_they_are(kind: Any) -> None:
    data = make.jpeg()
    assert encode(kind(data)).data == data


@pytest.mark.parametrize("name", ["photo.jpg", "photo.JPEG", "photo", "photo.bin", "photo.jfif"])
def test_files_go_as_they_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(make.jpeg())
    assert encode(path).data == make.jpeg()
    assert encode(str(path)).header.format == "jpeg"


@pytest.mark.parametrize("name", ["photo.png", "photo.gif", "photo.webp", "photo.bmp", "photo.tiff", "photo.heic"])
def test_names_that_say_another_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(make.jpeg())
    with pytest.raises(InvalidFormat, match="declared"):
        encode(path)
    assert encode(path, media_type="image/jpeg").header.format == "jpeg"


@pytest.mark.parametrize(("name", "declared"), [("a.JPG", "image/jpeg"), ("a.dib", "image/bmp"), ("a.txt", None)])
def test_declared_type(name: str, declared: str | None) -> None:
    assert declared_type(Path(name)) == declared


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        encode(tmp_path / "nothing.png")
    with pytest.raises(IsADirectoryError):
        encode(tmp_path)


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(FileTooLarge) as refusal:
        encode(path)
    assert refusal.value.details == {"size_bytes": 10**12, "max_bytes": INPUT_LIMITS.max_file_bytes}


def test_an_endless_file_is_not_read_for_ever() -> None:
    with pytest.raises(FileTooLarge):
        encode("/dev/zero")


def test_damage_inside_is_found_when_asked_for() -> None:
    data = bytearray(make.saved(Image.fromarray(make.noise()), "PNG"))
    data[5000] ^= 1
    damaged = bytes(data)
    assert encode(damaged).data == damaged
    with pytest.raises(CorruptImage, match="cannot be decoded"):
        encode(damaged, verify=True)
    assert encode(make.jpeg(), verify=True).data == make.jpeg()


@pytest.mark.parametrize("thing", [None, 3, 2.5, ["photo.jpg"], object()])
def test_other_things(thing: Any) -> None:
    with pytest.raises(TypeError, match="a picture is a path"):
        encode(thing)


# --------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("side", [140, 1600])
def test_arrays_arrive_pixel_by_pixel(channels: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (side // 2, side, channels), np.uint8)
    picture = encode(pixels)
    np.testing.assert_array_equal(np.asarray(decoded(picture.data)), pixels)
    assert (picture.header.width_px, picture.header.height_px) == (side, side // 2)


def test_views_of_arrays() -> None:
    pixels = make.noise(200, 300)
    for view in (pixels[::-1], pixels[:, ::2], pixels[..., ::-1], np.asfortranarray(pixels)):
        np.testing.assert_array_equal(np.asarray(decoded(encode(view).data)), view)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((100, 100, 3), np.float32),
        np.zeros((100, 100, 3), np.uint16),
        np.zeros((100, 100, 3), bool),
        np.zeros((100, 100), np.uint8),
        np.zeros((3, 100, 100), np.uint8),
        np.zeros((1, 100, 100, 3), np.uint8),
        np.array("text"),
    ],
    ids=lambda pixels: f"{pixels.shape}-{pixels.dtype}",
)
def test_arrays_of_another_kind(pixels: Any) -> None:
    with pytest.raises(InvalidFormat, match="height×width×3") as refusal:
        encode(pixels)
    assert "uint8" in refusal.value.user_action


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ((0, 100, 3), CorruptImage),
        ((63, 100, 3), ResolutionTooSmall),
        ((64, 7681, 3), ResolutionTooLarge),
        ((6000, 10000, 3), TooManyPixels),
    ],
)
def test_arrays_out_of_bounds_are_never_encoded(shape: tuple[int, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        encode(np.broadcast_to(np.uint8(0), shape))


@pytest.mark.parametrize("shape", [(4320, 7680, 3), (4320, 7680, 4), (2000, 3000, 3), (64, 64, 4)])
def test_flat_arrays_are_no_bombs(shape: tuple[int, ...]) -> None:
    picture = encode(np.broadcast_to(np.uint8(7), shape))
    assert len(picture.data) <= INPUT_LIMITS.max_file_bytes


@pytest.mark.parametrize(("channels", "pil_format"), [(3, "JPEG"), (4, "WEBP")])
def test_what_is_too_large_goes_lossy_and_says_so(channels: int, pil_format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 2400, channels), np.uint8)
    with pytest.warns(LossyEncodingWarning, match="quality 95"):
        picture = encode(pixels)
    assert decoded(picture.data).format == pil_format
    assert len(picture.data) <= INPUT_LIMITS.max_file_bytes


# ------------------------------------------------------------------------------------------------------------ PIL


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "PA", "RGBX", "HSV"])
@pytest.mark.parametrize("side", [100, 1500])
def test_modes_arrive_as_pillow_shows_them(mode: str, side: int) -> None:
    image = make.picture(side, side).convert(mode)
    arrived = decoded(encode(image).data)
    shown = image.convert("RGBA" if "A" in mode else "RGB")
    np.testing.assert_array_equal(np.asarray(arrived.convert(shown.mode)), np.asarray(shown))


def test_sixteen_bits_stay() -> None:
    values = np.linspace(0, 65535, 100 * 120).astype(np.uint16).reshape(100, 120)
    arrived = decoded(encode(Image.fromarray(values)).data)
    np.testing.assert_array_equal(np.asarray(arrived), values)


def test_palette_transparency_arrives() -> None:
    image = make.picture().convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    alpha = np.asarray(decoded(encode(image).data).convert("RGBA"))[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[-1, -1] == 255


def test_other_modes() -> None:
    with pytest.raises(InvalidFormat, match="mode 'F'"):
        encode(Image.new("F", (100, 100)))


@pytest.mark.parametrize("side", [100, 1500])
def test_orientation_is_not_applied_twice(side: int) -> None:
    """A PIL image goes as its pixels are, so the server must not be told to turn them."""
    image = decoded(make.jpeg(make.picture(side, side + 20), exif=make.exif(6)))
    arrived = decoded(encode(image).data)
    assert arrived.size == image.size
    assert arrived.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("side", [100, 1500])
def test_colour_profile_goes_along(side: int) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = decoded(make.jpeg(make.picture(side, side), icc_profile=profile))
    assert decoded(encode(image).data).info["icc_profile"] == profile


def test_the_callers_image_is_left_alone() -> None:
    image = make.picture().convert("P")
    before = image.copy()
    encode(image)
    assert image.mode == "P"
    assert image.tobytes() == before.tobytes()


def test_nothing_warns_otherwise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(make.picture(2000, 1500))
