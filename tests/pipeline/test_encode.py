"""The PNG writer against Pillow's reader, at every kind of size."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pipeline.encode import combined_adler32, encode, lossy, png
from pipeline.pixels import Pixels

SIZES = [(1, 1), (1, 7), (7, 1), (3, 5), (64, 64), (333, 257), (1000, 1301)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_round_trip(size: tuple[int, int], mode: str) -> None:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(1).integers(0, 256, (*size, *channels), np.uint8)
    image = Image.open(io.BytesIO(png(Pixels.of(pixels))))
    assert image.mode == mode
    image.verify()  # checksums
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(Pixels.of(pixels))))), pixels)


def test_strips_are_asked_for_once_each_and_leave_no_seam() -> None:
    """A large picture is made and compressed in strips; one that is constant in each row shows where rows are lost."""
    height, width = 2200, 700
    made: list[slice] = []

    def rows(part: slice) -> NDArray[np.uint8]:
        made.append(part)
        levels = (np.arange(part.start, part.stop) % 251).astype(np.uint8)
        return np.repeat(levels[:, None], width, axis=1)

    read = np.asarray(Image.open(io.BytesIO(png(Pixels(height, width, 1, rows)))))
    assert np.array_equal(read, np.repeat((np.arange(height) % 251).astype(np.uint8)[:, None], width, axis=1))
    assert len(made) > 4
    assert sorted(row for part in made for row in range(part.start, part.stop)) == list(range(height))


def test_what_fails_in_a_strip_comes_out() -> None:
    def rows(part: slice) -> NDArray[np.uint8]:
        if part.start:
            raise MemoryError("no")
        return np.zeros((part.stop - part.start, 3000), np.uint8)

    with pytest.raises(MemoryError, match="no"):
        png(Pixels(1000, 3000, 1, rows))


def test_a_view_is_written_as_it_looks() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 4), np.uint8)[::-1, 3:31]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(Pixels.of(pixels))))), pixels)


def test_a_smooth_picture_gets_smaller() -> None:
    ramp = np.add.outer(np.arange(300), np.arange(400)).astype(np.uint8)
    assert len(png(Pixels.of(np.dstack([ramp] * 3)))) < ramp.size // 4


def test_webp_keeps_alpha_exactly() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (90, 70, 4), np.uint8)
    image = Image.open(io.BytesIO(lossy(Pixels.of(pixels), "webp", 90)))
    assert image.mode == "RGBA"
    assert np.array_equal(np.asarray(image)[..., 3], pixels[..., 3])


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (1, 1), (70_000, 99_999), (65_521, 65_521)])
def test_checksums_combine(lengths: tuple[int, int]) -> None:
    data = np.random.default_rng(3).integers(0, 256, sum(lengths), np.uint8).tobytes()
    first, second = data[: lengths[0]], data[lengths[0] :]
    combined = combined_adler32(zlib.adler32(first), zlib.adler32(second), lengths[1])
    assert combined == zlib.adler32(data)


def test_outputs_by_name() -> None:
    alpha = np.zeros((70, 70), np.uint8)
    rgba = np.zeros((70, 70, 4), np.uint8)
    assert Image.open(io.BytesIO(encode(Pixels.of(alpha), "mask", 90))).mode == "L"
    assert Image.open(io.BytesIO(encode(Pixels.of(rgba), "png", 90))).format == "PNG"
    assert Image.open(io.BytesIO(encode(Pixels.of(rgba), "webp", 90))).format == "WEBP"
    assert Image.open(io.BytesIO(encode(Pixels.of(rgba[..., :3]), "jpeg", 90))).format == "JPEG"


def test_layers_are_colours_and_alpha_apart() -> None:
    pixels = np.zeros((70, 90, 4), np.uint8)
    pixels[..., :3] = (200, 100, 50)
    pixels[10:40, 20:50, 3] = np.arange(30) * 8
    data = encode(Pixels.of(pixels), "layers", 90, (300.0, 300.0))
    assert data == encode(Pixels.of(pixels), "layers", 90, (300.0, 300.0)), "the time of day must not be in it"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["color.jpg", "alpha.png"]
        colour, alpha = (Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist())
    assert (colour.format, colour.mode, alpha.format, alpha.mode) == ("JPEG", "RGB", "PNG", "L")
    assert np.array_equal(np.asarray(alpha), pixels[..., 3])
    assert np.abs(np.asarray(colour).astype(int) - (200, 100, 50)).max() <= 3


@pytest.mark.parametrize("output", ["png", "webp", "jpeg", "mask"])
def test_density_and_colour_space_are_marked(output: str) -> None:
    shape = (70, 90) if output == "mask" else (70, 90, 3)
    image = Image.open(io.BytesIO(encode(Pixels.of(np.zeros(shape, np.uint8)), output, 90, (300.0, 150.0))))
    exif = image.getexif()
    if output == "webp":
        assert (exif[0x011A], exif[0x011B], exif[0x0128]) == (300, 150, 2)
    else:
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.1)
    if output == "png":
        assert "srgb" in image.info
    elif output != "mask":
        assert exif.get_ifd(0x8769)[0xA001] == 1


def test_quality_is_heeded() -> None:
    noise = np.random.default_rng(5).integers(0, 256, (128, 128, 3), np.uint8)
    for output in ("webp", "jpeg"):
        sizes = [len(encode(Pixels.of(noise), output, quality)) for quality in (10, 50, 95)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1] / 2
