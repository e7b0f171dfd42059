"""Files and options that the server has to refuse, each with the code that it has to give."""

from __future__ import annotations

import io

import numpy as np
from cutaway.contract.limits import INPUT_LIMITS
from numpy.typing import NDArray
from PIL import Image

from loadtest import pictures


def bad_files() -> dict[str, bytes]:
    """Files by the error code that is the right answer to them."""
    good = pictures.portrait(0.3)
    noise = np.random.default_rng(1)
    small = INPUT_LIMITS.min_side_px // 2
    wide = INPUT_LIMITS.max_long_side_px + 1
    return {
        "INVALID_FORMAT": b"%PDF-1.7 no picture at all" + noise.bytes(20_000),
        "CORRUPT_IMAGE": good[: len(good) // 2],
        "RESOLUTION_TOO_SMALL": _png(noise.integers(0, 256, (small, small, 3), np.uint8)),
        "RESOLUTION_TOO_LARGE": _png(noise.integers(0, 256, (INPUT_LIMITS.min_side_px, wide, 3), np.uint8)),
        "IMAGE_BOMB": _png(np.zeros((4000, 4000), np.uint8)),
        "FILE_TOO_LARGE": good + bytes(INPUT_LIMITS.max_file_bytes),
        "NO_PERSON_DETECTED": _png(noise.integers(0, 256, (240, 320, 3), np.uint8)),
    }


BAD_OPTIONS: tuple[dict[str, str], ...] = (
    {"subject": "everybody"},
    {"min_confidence": "1.5"},
    {"background": "#GGGGGG"},
    {"padding_px": "-1"},
)
"""Request parameters that are answered with INVALID_OPTION."""


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
