"""A picture of any size → the detector's square, and back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from cutaway.contract.limits import DETECTOR_SIDE_PX
from numpy.typing import NDArray

GREY = 114
"""Ultralytics' padding colour: the detector was trained with it."""


@dataclass(frozen=True)
class Letterbox:
    """The placement of a picture, or of a slice of it, in the square:
    ``square = (picture − (from_x, from_y)) · (scale_x, scale_y) + (left, top)``.

    Both scales are the same but for the rounding of the resized picture to whole pixels, which at its far edge is up
    to half a pixel of the square.
    """

    scale_x: float
    scale_y: float
    left: int
    top: int
    width: int
    height: int
    from_x: int = 0
    from_y: int = 0

    def to_picture(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (N, 4) float32 in pixels of the square → in pixels of the picture, clipped to what the square shows."""
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        scale = np.array([self.scale_x, self.scale_y, self.scale_x, self.scale_y], np.float32)
        origin = np.array([self.from_x, self.from_y, self.from_x, self.from_y], np.float32)
        return (np.clip((boxes - offset) / scale, 0, limit) + origin).astype(np.float32)


def place(width: int, height: int, side: int = DETECTOR_SIDE_PX) -> Letterbox:
    """Where Ultralytics' LetterBox puts a picture of this size: scaled to fit, centred, rounded as there."""
    inner_width, inner_height = _inner_size(width, height, side)
    left = round((side - inner_width) / 2 - 0.1)
    top = round((side - inner_height) / 2 - 0.1)
    return Letterbox(inner_width / width, inner_height / height, left, top, width, height)


def letterbox(rgb: NDArray[np.uint8], side: int = DETECTOR_SIDE_PX) -> tuple[NDArray[np.uint8], Letterbox]:
    """(H, W, 3) uint8 RGB → (side, side, 3) uint8 RGB and its placement."""
    height, width = rgb.shape[:2]
    placement = place(width, height, side)
    inner_width, inner_height = _inner_size(width, height, side)
    square = np.full((side, side, 3), GREY, np.uint8)
    inner = square[placement.top : placement.top + inner_height, placement.left : placement.left + inner_width]
    if (inner_width, inner_height) == (width, height):
        inner[:] = rgb
    else:
        cv2.resize(rgb, (inner_width, inner_height), dst=inner, interpolation=cv2.INTER_LINEAR)
    return square, placement


def _inner_size(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(side / height, side / width)
    return max(1, round(width * scale)), max(1, round(height * scale))
