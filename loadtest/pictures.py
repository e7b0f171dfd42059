"""The pictures that are sent: made from `samples/`, of any size and number of people, kept in `.cache/loadtest`."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cutaway.contract.limits import INPUT_LIMITS
from numpy.typing import NDArray
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
CACHE = ROOT / ".cache" / "loadtest"
PEOPLE_SAMPLES = ("admiral.jpg", "astronaut.jpg")
QUALITY = 90
GRAIN = 3.0
"""Standard deviation of the noise, of 255: an enlarged sample alone would be far smaller as a file, and quicker to
decode, than what a camera writes."""
THING_BOX = (330, 90, 512, 250)
"""Of astronaut.jpg: the model of a space shuttle behind the astronaut, a thing without a person."""
FRAME_SIZE = (640, 480)
FRAME_STEP_PX = 6
TILE_RATIO = 0.75
"""Width by height of one person's place in a crowd."""


BAD_OPTIONS: tuple[dict[str, str], ...] = (
    {"subject": "everybody"},
    {"min_confidence": "1.5"},
    {"background": "#GGGGGG"},
    {"padding_px": "-1"},
)
"""Request parameters that are answered with INVALID_OPTION."""


def _kept(make: Callable[..., bytes]) -> Callable[..., bytes]:
    """What is in the cache, or what `make` returns, kept for the next run."""

    @functools.wraps(make)
    def kept(*arguments: float) -> bytes:
        path = CACHE / f"{'-'.join([make.__name__, *(f'{each:g}' for each in arguments)])}.jpg"
        if not path.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            # Several processes may make it at once; each puts a whole file into its place.
            part = path.with_name(f"{path.name}.{os.getpid()}")
            part.write_bytes(make(*arguments))
            part.replace(path)
        return path.read_bytes()

    return kept


@_kept
def portrait(megapixels: float, variant: int = 0) -> bytes:
    """A JPEG of one person. `variant` chooses the sample (even, odd) and from 2 on mirrors it."""
    return _jpeg(_scaled(_person(variant), megapixels))


@_kept
def thing(megapixels: float) -> bytes:
    """A JPEG of a thing, without a person."""
    return _jpeg(_scaled(_sample("astronaut.jpg").crop(THING_BOX), megapixels))


@_kept
def frame(number: int) -> bytes:
    """A JPEG of 640×480 of one person, who moves a little to the right from one number to the next."""
    image = Image.new("RGB", FRAME_SIZE, (90, 110, 100))
    person = ImageOps.fit(_sample("astronaut.jpg"), (FRAME_SIZE[1], FRAME_SIZE[1]), Image.Resampling.BICUBIC)
    image.paste(person, (FRAME_STEP_PX * number, 0))
    return _jpeg(image)


@_kept
def crowd(people: int, megapixels: float) -> bytes:
    """A JPEG of so many people side by side, in rows, 4:3 or wider."""
    rows = max(1, round(math.sqrt(people * TILE_RATIO * 3 / 4)))
    columns = math.ceil(people / rows)
    tile_width = math.sqrt(megapixels * 1e6 * TILE_RATIO / (rows * columns))
    size = (round(tile_width), round(tile_width / TILE_RATIO))
    sheet = Image.new("RGB", (columns * size[0], rows * size[1]), (128, 128, 128))
    for index in range(people):
        row, column = divmod(index, columns)
        sheet.paste(ImageOps.fit(_person(index), size, Image.Resampling.BICUBIC), (column * size[0], row * size[1]))
    return _jpeg(sheet)


def bad_files() -> dict[str, bytes]:
    """Files by the error code that is the right answer to them."""
    good = portrait(0.3)
    noise = np.random.default_rng(1)
    small = INPUT_LIMITS.min_side_px // 2
    wide = INPUT_LIMITS.max_long_side_px + 1
    return {
        "INVALID_FORMAT": b"%PDF-1.7 no picture at all" + noise.bytes(20_000),
        "CORRUPT_IMAGE": good[: len(good) // 2],
        "RESOLUTION_TOO_SMALL": _png(noise.integers(0, 256, (small, small, 3), np.uint8)),
        "RESOLUTION_TOO_LARGE": _png(noise.integers(0, 256, (INPUT_LIMITS.min_side_px, wide, 3), np.uint8)),
        "IMAGE_BOMB": _png(np.zeros((4200, 4200), np.uint8)),
        "FILE_TOO_LARGE": good + bytes(INPUT_LIMITS.max_file_bytes),
        "NO_PERSON_DETECTED": _png(noise.integers(0, 256, (240, 320, 3), np.uint8)),
    }


def _person(variant: int) -> Image.Image:
    image = _sample(PEOPLE_SAMPLES[variant % len(PEOPLE_SAMPLES)])
    return ImageOps.mirror(image) if variant // len(PEOPLE_SAMPLES) % 2 else image


def _sample(name: str) -> Image.Image:
    with Image.open(SAMPLES / name) as file:
        return ImageOps.exif_transpose(file).convert("RGB")


def _scaled(image: Image.Image, megapixels: float) -> Image.Image:
    scale = math.sqrt(megapixels * 1e6 / (image.width * image.height))
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image) -> bytes:
    """The picture with grain, the same at every call."""
    pixels = np.asarray(image, np.float32)
    grain = np.random.default_rng(0).normal(0, GRAIN, pixels.shape[:2]).astype(np.float32)
    noisy = np.clip(pixels + grain[..., None], 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
