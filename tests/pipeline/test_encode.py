"""The PNG writer against Pillow's reader, at every kind of size."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pipeline.encode import combined_adler32, encode, png, webp
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
    image = Image.open(io.BytesIO(webp(Pixels.of(pixels))))
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
    assert Image.open(io.BytesIO(encode(Pixels.of(alpha), "mask"))).mode == "L"
    assert Image.open(io.BytesIO(encode(Pixels.of(rgba), "png"))).format == "PNG"
    assert Image.open(io.BytesIO(encode(Pixels.of(rgba), "webp"))).format == "WEBP"
