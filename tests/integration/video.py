"""Short videos of somebody from the samples: standing still before a noisy camera, or moving."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 480
NOISE = 4.0
"""Standard deviation of a webcam's noise indoors, grey levels."""


def still(sample: Path) -> NDArray[np.uint8]:
    """(480, 640, 3) uint8 RGB: a sample in the middle, mirrored outwards where it is narrower."""
    picture = cv2.cvtColor(cv2.imread(str(sample)), cv2.COLOR_BGR2RGB)
    scale = HEIGHT / picture.shape[0]
    scaled = cv2.resize(picture, (round(picture.shape[1] * scale), HEIGHT), interpolation=cv2.INTER_AREA)
    missing = max(0, WIDTH - scaled.shape[1])
    wide = cv2.copyMakeBorder(scaled, 0, 0, missing // 2, missing - missing // 2, cv2.BORDER_REPLICATE)
    left = (wide.shape[1] - WIDTH) // 2
    return np.ascontiguousarray(wide[:, left : left + WIDTH])


def noisy(frame: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """The frame as a camera sees it, another time for each seed."""
    noise = np.random.default_rng(seed).normal(0, NOISE, frame.shape)
    return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


def shifted(frame: NDArray[np.uint8], by_px: int) -> NDArray[np.uint8]:
    """The frame moved to the right by whole pixels; what comes in at the left is its first column."""
    moved = np.roll(frame, by_px, axis=1)
    if by_px > 0:
        moved[:, :by_px] = frame[:, :1]
    return moved


def jpeg(frame: NDArray[np.uint8]) -> bytes:
    """An RGB frame as a camera's JPEG."""
    return bytes(cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
