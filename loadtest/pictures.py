"""The pictures that are sent: made from `samples/`, of any size and number of people, kept in `.cache/loadtest`."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
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


def portrait(megapixels: float, variant: int = 0) -> bytes:
    """A JPEG of one person. `variant` chooses the sample (even, odd) and from 2 on mirrors it."""
    return _kept(f"portrait-{megapixels:g}-{variant}", lambda: _portrait(megapixels, variant))


def crowd(people: int, megapixels: float) -> bytes:
    """A JPEG of so many people side by side, in rows, 4:3 or wider."""
    return _kept(f"crowd-{people}-{megapixels:g}", lambda: _crowd(people, megapixels))


def thing(megapixels: float) -> bytes:
    """A JPEG of a thing, without a person."""
    return _kept(f"thing-{megapixels:g}", lambda: _jpeg(_scaled(_sample("astronaut.jpg").crop(THING_BOX), megapixels)))


def frame(number: int) -> bytes:
    """A JPEG of 640×480 of one person, who moves a little to the right from one number to the next."""
    return _kept(f"frame-{number}", lambda: _frame(number))


def pixels_of(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return int(image.width * image.height)


def _portrait(megapixels: float, variant: int) -> bytes:
    image = _sample(PEOPLE_SAMPLES[variant % len(PEOPLE_SAMPLES)])
    if variant // len(PEOPLE_SAMPLES) % 2:
        image = ImageOps.mirror(image)
    return _jpeg(_scaled(image, megapixels))


def _frame(number: int) -> bytes:
    image = Image.new("RGB", FRAME_SIZE, (90, 110, 100))
    person = ImageOps.fit(_sample("astronaut.jpg"), (FRAME_SIZE[1], FRAME_SIZE[1]), Image.Resampling.BICUBIC)
    image.paste(person, (FRAME_STEP_PX * number, 0))
    return _jpeg(image)


def _crowd(people: int, megapixels: float) -> bytes:
    rows = max(1, round(math.sqrt(people * TILE_RATIO * 3 / 4)))
    columns = math.ceil(people / rows)
    tile_width = math.sqrt(megapixels * 1e6 * TILE_RATIO / (rows * columns))
    size = (round(tile_width), round(tile_width / TILE_RATIO))
    sheet = Image.new("RGB", (columns * size[0], rows * size[1]), (128, 128, 128))
    for index in range(people):
        row, column = divmod(index, columns)
        image = _sample(PEOPLE_SAMPLES[index % len(PEOPLE_SAMPLES)])
        if index // len(PEOPLE_SAMPLES) % 2:
            image = ImageOps.mirror(image)
        tile = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        sheet.paste(tile, (column * size[0], row * size[1]))
    return _jpeg(sheet)


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


def _kept(name: str, make: Callable[[], bytes]) -> bytes:
    """What is in the cache, or what `make` returns, kept for the next run."""
    path = CACHE / f"{name}.jpg"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Several processes may make it at once; each puts a whole file into its place.
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.write_bytes(make())
        part.replace(path)
    return path.read_bytes()
