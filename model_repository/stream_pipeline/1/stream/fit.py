"""A frame → the network's input, and its placement there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pipeline.letterbox import GREY

from stream.tuning import MAX_ASPECT, STRIDE_PX


@dataclass(frozen=True)
class Fit:
    """The placement of a frame in the network's input, in pixels of the latter.

    Attributes:
        width, height: the network's input.
        left, top, inner_width, inner_height: the frame's part of it.
    """

    width: int
    height: int
    left: int
    top: int
    inner_width: int
    inner_height: int

    def cells(self, cell_px: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of the frame in cells of so many pixels."""
        return self.left / cell_px, self.top / cell_px, self.inner_width / cell_px, self.inner_height / cell_px


def square(width: int, height: int, side: int) -> Fit:
    """A frame of this size in a square, scaled to fit and centred."""
    scale = min(side / width, side / height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    return Fit(side, side, (side - inner_width) // 2, (side - inner_height) // 2, inner_width, inner_height)


def free(width: int, height: int, pixels: int) -> Fit:
    """A frame of this size in a rectangle of about so many pixels and of the frame's aspect ratio.

    Sides are multiples of `STRIDE_PX`, so that the frame is stretched by a few percent at most; beyond `MAX_ASPECT` it
    is letterboxed instead.
    """
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    best_width = _multiple(math.sqrt(pixels * aspect))
    best_height = _multiple(best_width / aspect)
    stretch = (best_width / best_height) / (width / height)
    if abs(stretch - 1) < 0.1:
        return Fit(best_width, best_height, 0, 0, best_width, best_height)
    scale = min(best_width / width, best_height / height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (best_width - inner_width) // 2, (best_height - inner_height) // 2
    return Fit(best_width, best_height, left, top, inner_width, inner_height)


def fill(fit: Fit, frame: NDArray[np.uint8], *, swap: bool) -> NDArray[np.uint8]:
    """The network's input, (height, width, 3) uint8 RGB, of a frame (H, W, 3) uint8.

    Args:
        fit: the frame's placement.
        frame: RGB, or BGR.
        swap: whether the frame is BGR.
    """
    size_wh = fit.inner_width, fit.inner_height
    shrinks = fit.inner_width * 2 <= frame.shape[1]
    small = cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if swap:
        small = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
    if size_wh == (fit.width, fit.height):
        return np.asarray(small, np.uint8)
    canvas = np.full((fit.height, fit.width, 3), GREY, np.uint8)
    canvas[fit.top : fit.top + fit.inner_height, fit.left : fit.left + fit.inner_width] = small
    return canvas


def _multiple(length: float) -> int:
    return max(STRIDE_PX, round(length / STRIDE_PX) * STRIDE_PX)
