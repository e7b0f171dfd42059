"""Stand-ins for the two networks, exact and without weights: people are flat colours on grey.

`draw` paints people as ellipses; the detector finds each colour, with a mask as coarse as the real one's, and the
matting network sees everything that is not grey.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pipeline.run import Models

GREY = 128
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
SIDE = 96
"""The stand-in matting network's side: small, so that its mattes are enlarged as real ones are."""

Ellipse = tuple[int, int, int, int]
"""Centre and half axes: x, y, half width, half height."""


def draw(width: int, height: int, people: list[Ellipse]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8: person n has colour n; later ones stand in front."""
    scene = np.full((height, width, 3), GREY, np.uint8)
    for colour, (x, y, half_width, half_height) in zip(COLOURS, people, strict=False):
        cv2.ellipse(scene, (x, y), (half_width, half_height), 0, 0, 360, colour, -1)
    return scene


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def picture(width: int, height: int, people: list[Ellipse]) -> bytes:
    return as_png(draw(width, height, people))


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def detector(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """(N, 640, 640, 3) uint8 → outputs as `yolov8_seg` has them."""
    each = [_detect(image) for image in images]
    return {name: np.concatenate([outputs[name] for outputs in each]) for name in each[0]}


def _detect(image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    outputs: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((1, 300, 4), np.float32),
        "scores": np.zeros((1, 300), np.float32),
        "classes": np.zeros((1, 300), np.int32),
        "coefficients": np.zeros((1, 300, 32), np.float32),
        "prototypes": np.zeros((1, 32, 160, 160), np.float32),
    }
    for number, colour in enumerate(COLOURS):
        mask = _near(image, colour)
        if not mask.any():
            continue
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        outputs["boxes"][0, number] = (x, y, x + width, y + height)
        outputs["scores"][0, number] = 0.9 - 0.25 * number
        outputs["coefficients"][0, number, number] = 1
        small = cv2.resize(mask.astype(np.float32), (160, 160), interpolation=cv2.INTER_AREA)
        outputs["prototypes"][0, number] = 16 * small - 8
    return outputs


def matter(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, S, S, 3) uint8 → (N, S, S) uint8: how far a pixel is from grey."""
    distance = np.abs(images.astype(np.int16) - GREY).max(axis=3)
    return np.clip(distance * 255 // 72, 0, 255).astype(np.uint8)


def models(side: int = SIDE) -> Models:
    return Models(detector, matter, side, {"profile": "stand-in"}, "cpu")


def _near(image: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.abs(image.astype(np.int16) - colour).max(axis=2) < 60
