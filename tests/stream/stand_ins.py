"""A stand-in for the detector that takes any size: people are flat colours on grey (see `tests.pipeline.stand_ins`)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.pipeline.stand_ins import COLOURS


def detector(images: NDArray[np.uint8], scores: tuple[float, ...] = (0.9, 0.8, 0.7)) -> dict[str, NDArray[Any]]:
    """(1, height, width, 3) uint8 → outputs as `yolov8_seg_free` has them."""
    height, width = images.shape[1:3]
    outputs: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((1, 300, 4), np.float32),
        "scores": np.zeros((1, 300), np.float32),
        "classes": np.zeros((1, 300), np.int32),
        "coefficients": np.zeros((1, 300, 32), np.float32),
        "prototypes": np.zeros((1, 32, height // 4, width // 4), np.float32),
    }
    for number, (colour, score) in enumerate(zip(COLOURS, scores, strict=True)):
        mask = (np.abs(images[0].astype(np.int16) - colour).max(axis=2) < 60).astype(np.uint8)
        if mask.any():
            x, y, box_width, box_height = cv2.boundingRect(mask)
            outputs["boxes"][0, number] = (x, y, x + box_width, y + box_height)
            outputs["scores"][0, number] = score
            outputs["coefficients"][0, number, number] = 1
            small = cv2.resize(mask.astype(np.float32), (width // 4, height // 4), interpolation=cv2.INTER_AREA)
            outputs["prototypes"][0, number] = 16 * small - 8
    return outputs
