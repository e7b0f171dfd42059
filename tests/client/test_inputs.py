"""Whatever callers hand over arrives at the server as the same pixels, or is refused before anything is sent."""

from __future__ import annotations

import base64
import io
import os
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import (
    CorruptImage,
    FileTooLarge,
    InvalidFormat,
    ResolutionTooLarge,
    ResolutionTooSmall,
    TooManyPixels,
)
from cutaway.contract.limits import INPUT_LIMITS, Tier
from cutaway.inputs import LossyEncodingWarning, declared_type, encode
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
    """Browsers and phones mislabel daily: a warning, and an error only where the caller is strict."""
    path = tmp_path / name
    path.write_bytes(make.jpeg())
    picture = encode(path)
    assert picture.header.format == "jpeg"
    (warning,) = picture.warnings
    assert (warning.code, warning.tier) == ("MEDIA_TYPE_MISMATCH", Tier.LOW)
    assert warning.details == {"declared": declared_type(path), "received": "image/jpeg"}
    with pytest.raises(InvalidFormat, match="declared"):
        encode(path, strict=True)
    assert encode(path, media_type="image/jpeg", strict=True).warnings == ()


def test_a_name_does_not_make_another_format_a_picture(tmp_path: Path) -> None:
    for name in ("photo.jpg", "photo.gif"):
        (tmp_path / name).write_bytes(b"GIF89a" + bytes(100))
        with pytest.raises(InvalidFormat, match="a GIF"):
            encode(tmp_path / name)


def test_declared_types_that_agree_do_not_warn(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.jpeg", "a.jfif", "a", "a.bin"):
        (tmp_path / name).write_bytes(make.jpeg())
        assert encode(tmp_path / name, strict=True).warnings == ()
    assert encode(make.jpeg(), media_type="image/jpg; charset=binary", strict=True).warnings == ()


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
    with pytest.warns(LossyEncodingWarning, match="of bytes"):
        picture = encode(pixels)
    assert decoded(picture.data).format == pil_format
    assert len(picture.data) <= INPUT_LIMITS.max_file_bytes


def grainy(height: int, width: int, grain: float) -> np.ndarray:
    ramp = np.linspace(40, 200, width)[None, :, None] + np.zeros((height, 1, 3))
    return np.clip(ramp + np.random.default_rng(0).normal(0, grain, ramp.shape), 0, 255).astype(np.uint8)


def test_quality_goes_as_low_as_it_must() -> None:
    """A photograph from an array, with a sensor's noise: too large as the best of JPEGs."""
    limits = replace(INPUT_LIMITS, max_file_bytes=500_000)
    with pytest.warns(LossyEncodingWarning, match="as a JPEG"):
        picture = encode(grainy(800, 1200, 5), limits=limits)
    assert 100_000 < len(picture.data) <= limits.max_file_bytes


def test_what_stays_too_large_is_refused_without_a_warning() -> None:
    with pytest.raises(FileTooLarge, match="Even at quality 75") as caught:
        encode(grainy(800, 1200, 90), limits=replace(INPUT_LIMITS, max_file_bytes=500_000))
    assert caught.value.user_action == "Scale it down first."


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
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(side: int, orientation: int) -> None:
    """A PIL image arrives upright, and the server is not told to turn it again."""
    upright = make.picture(side, side + 20)
    stored = make.saved(make.stored_for(orientation, upright), "PNG", exif=make.exif(orientation))
    for image in (Image.open(io.BytesIO(stored)), decoded(stored)):
        arrived = decoded(encode(image).data)
        np.testing.assert_array_equal(np.asarray(arrived.convert("RGB")), np.asarray(upright))
        assert arrived.getexif().get(0x0112, 1) == 1


def test_damaged_exif_of_a_pil_image_turns_nothing() -> None:
    image = make.picture()
    image.info["exif"] = b"Exif\0\0MM\0*" + b"\xff" * 40
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decoded(encode(image).data).size == image.size


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


# --------------------------------------------------------------------------------------------------- file objects


class Trickling(io.RawIOBase):
    """Gives at most seven bytes at a time, and keeps count."""

    def __init__(self, data: bytes) -> None:
        self.inner = io.BytesIO(data)
        self.asked: list[int] = []

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        self.asked.append(size)
        return self.inner.read(min(size, 7))


def test_file_objects_are_read_from_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(b"before" + make.jpeg())
    with path.open("rb") as file:
        file.seek(6)
        assert encode(file).data == make.jpeg()
        assert not file.closed
        assert file.tell() == 6 + len(make.jpeg())
    with path.open("rb", buffering=0) as raw:
        raw.seek(6)
        assert encode(raw).data == make.jpeg()
    assert encode(io.BytesIO(make.jpeg())).data == make.jpeg()


def test_file_objects_that_give_little_at_a_time() -> None:
    file = Trickling(make.jpeg())
    assert encode(file).data == make.jpeg()
    assert max(file.asked) == INPUT_LIMITS.max_file_bytes + 1


def test_file_objects_are_read_to_one_byte_over_the_limit() -> None:
    with Path("/dev/zero").open("rb") as file, pytest.raises(FileTooLarge) as refusal:
        encode(file)
    most = INPUT_LIMITS.max_file_bytes
    assert refusal.value.details == {"size_bytes": most + 1, "max_bytes": most}
    file_of_most = io.BytesIO(make.jpeg().ljust(most + 100, b"\0"))
    with pytest.raises(FileTooLarge):
        encode(file_of_most)
    assert file_of_most.tell() == most + 1
    assert encode(io.BytesIO(make.jpeg().ljust(most, b"\0"))).header.format == "jpeg"


def test_the_name_of_a_file_object_declares_its_type(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(make.jpeg())
    with path.open("rb") as file, pytest.raises(InvalidFormat, match="declared"):
        encode(file, strict=True)
    with path.open("rb") as file:
        assert [warning.code for warning in encode(file).warnings] == ["MEDIA_TYPE_MISMATCH"]
    with path.open("rb") as file:
        assert encode(file, media_type="image/jpeg").warnings == ()
    with os.fdopen(os.open(path, os.O_RDONLY), "rb") as unnamed:  # its name is a number
        assert encode(unnamed).header.format == "jpeg"


def test_text_files_are_a_clear_mistake(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(make.jpeg())
    for encoding in ("utf-8", "latin-1"):
        with path.open(encoding=encoding) as file, pytest.raises(TypeError, match="'rb'"):
            encode(file)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'rb'"):
        encode(io.StringIO("text"))  # type: ignore[arg-type]


def test_a_file_object_at_its_end() -> None:
    file = io.BytesIO(make.jpeg())
    file.read()
    with pytest.raises(InvalidFormat, match="Nothing is left") as refusal:
        encode(file)
    assert "seek(0)" in refusal.value.user_action


class Giving:
    def __init__(self, part: Any) -> None:
        self.part = part

    def read(self, size: int) -> Any:
        return self.part


@pytest.mark.parametrize(("part", "error"), [(3, TypeError), ([1], TypeError), (None, TypeError)])
def test_file_objects_that_give_something_else(part: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        encode(Giving(part))


def test_asynchronous_files() -> None:
    class Upload:
        async def read(self, size: int) -> bytes:
            return b""

    with pytest.raises(TypeError, match="await it"):
        encode(Upload())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ data URIs


def data_uri(data: bytes, media_type: str = "image/jpeg") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("media_type", ["image/jpeg", "IMAGE/JPG", "image/jpeg;charset=utf-8", "", "image/*"])
def test_data_uris(media_type: str) -> None:
    assert encode(data_uri(make.jpeg(), media_type)).data == make.jpeg()


def test_data_uris_as_browsers_forgive_them() -> None:
    plain = data_uri(make.jpeg())
    head, body = plain.split(",")
    wrapped = "\r\n ".join(body[at : at + 76] for at in range(0, len(body), 76))
    for uri in (
        plain.rstrip("="),
        f"{head},{wrapped}\n",
        "DATA:Image/JPEG; BASE64," + body,
    ):
        assert encode(uri).data == make.jpeg()


def test_data_uris_that_say_another_format() -> None:
    for declared in ("image/png", "text/plain"):
        with pytest.raises(InvalidFormat, match=f"declared as '{declared}'"):
            encode(data_uri(make.jpeg(), declared), strict=True)
        assert encode(data_uri(make.jpeg(), declared)).warnings[0].details["declared"] == declared
    assert encode(data_uri(make.jpeg(), "image/png"), media_type="image/jpeg").header.format == "jpeg"


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,@@@@",
        "data:image/png;base64,AAAAA",
        "data:image/png;base64,AA=AA",
        "data:image/png;base64,AA-_",
        "data:image/png;base64,%",
        "data:image/png;base64,%zz",
        "data:image/png,%8",
        "data:image/png,Grüße",
        "data:image/png,\ud800",
        "data:" + "x" * 1001 + ",",
    ],
)
def test_malformed_data_uris(uri: str) -> None:
    with pytest.raises(InvalidFormat, match="data URI") as refusal:
        encode(uri)
    assert refusal.value.details["received"] == "a malformed data URI"


def test_empty_data_uris() -> None:
    with pytest.raises(InvalidFormat, match="empty"):
        encode("data:image/png;base64,")


@pytest.mark.parametrize("kind", ["base64", "wrapped"])
def test_data_uris_up_to_the_limit_and_no_further(kind: str) -> None:
    most = INPUT_LIMITS.max_file_bytes
    fits = make.jpeg().ljust(most, b"\0")

    def uri_of(data: bytes) -> str:
        text = base64.b64encode(data).decode()
        if kind == "wrapped":
            text = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
        return "data:;base64," + text

    assert encode(uri_of(fits)).data == fits
    too_long = uri_of(fits + b"\0")
    tracemalloc.start()
    try:
        with pytest.raises(FileTooLarge) as refusal:
            encode(too_long)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refusal.value.details == {"size_bytes": most + 1, "max_bytes": most}
    assert peak < 100_000, "nothing is decoded before its size is known"


# -------------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    "address", ["http://example.com/a.png", "HTTPS://example.com/a.png?token=s3cret", " https://u:s3cret@example.com"]
)
def test_web_addresses_are_never_fetched_silently(address: str) -> None:
    with pytest.raises(InvalidFormat, match="web address") as refusal:
        encode(address)
    assert "httpx.get(url).content" in refusal.value.user_action
    assert "s3cret" not in str(refusal.value) + repr(refusal.value.details)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, ""])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011
        encode(name)


def test_huge_bytes_are_refused_before_they_are_copied() -> None:
    data = bytearray(INPUT_LIMITS.max_file_bytes + 1)
    tracemalloc.start()
    try:
        for huge in (data, memoryview(data)):
            with pytest.raises(FileTooLarge):
                encode(huge)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_pil_image_whose_file_is_damaged() -> None:
    whole = make.saved(Image.fromarray(make.noise()), "PNG")
    with pytest.raises(CorruptImage, match="PIL image"):
        encode(Image.open(io.BytesIO(whole[:-5000])))


# ------------------------------------------------------------------------------------- what the server makes of it


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_reaches_the_server_or_is_applied(mode: str) -> None:
    """The pipeline reads 128 at gamma 1 as 188, whether the file is grey or already in sRGB."""
    from pipeline.decode import decode

    from tests.pipeline.test_files import grey_profile

    image = Image.new(mode, (64, 64), 128 if mode == "L" else (128, 200))
    image.info["icc_profile"] = grey_profile(1.0)
    picture = decode(encode(image).data)
    shown = picture.rgb if picture.own_rgb is None else picture.own_rgb
    assert np.abs(shown.astype(int) - 188).max() <= 1
    assert picture.notices == ()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "I;16"])
@pytest.mark.parametrize("size", [64, 1500])
def test_density_is_sent_where_a_pil_image_has_one_and_none_is_made_up(mode: str, size: int) -> None:
    from pipeline.decode import decode

    image = Image.new(mode, (size, size))
    assert decode(encode(image).data).density_dpi is None
    image.info["dpi"] = (300, 300)
    assert decode(encode(image).data).density_dpi == pytest.approx((300, 300), abs=0.1)
    image.info["dpi"] = ("much", float("nan"))
    assert decode(encode(image).data).density_dpi is None
