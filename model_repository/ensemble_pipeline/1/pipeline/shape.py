"""What of a cut-out is kept, and how large: cropping to what is in it, and scaling."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Rect
from pipeline.pixels import Pixels
from pipeline.tuning import CROP_ALPHA


def cropped(alpha: NDArray[np.uint8], region: Rect, frame: Rect, margin_px: int, margin_percent: float) -> Rect:
    """The rectangle around what an alpha (h, w) uint8 of a region shows, with a margin, within the frame.

    The frame itself where there is nothing.
    """
    seen = alpha >= CROP_ALPHA
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return frame
    box = Rect(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    margin = max(margin_px, round(max(box.width, box.height) * margin_percent / 100))
    inside = box.seen_from(Rect(-region.x1, -region.y1, 0, 0)).grown(margin).within(frame)
    return frame if inside.empty else inside


def scaled(pixels: Pixels, max_side_px: int | None) -> Pixels:
    """A picture without a side longer than that; colours weigh by their alpha, so that edges keep theirs."""
    longest = max(pixels.width, pixels.height)
    if max_side_px is None or longest <= max_side_px:
        return pixels
    size_wh = tuple(max(1, round(side * max_side_px / longest)) for side in (pixels.width, pixels.height))
    whole = pixels.array()
    if pixels.channels != 4:
        return Pixels.of(_smaller(whole, size_wh))
    weight = whole[..., 3].astype(np.uint16)
    opacity = _smaller(weight * np.uint16(255), size_wh).astype(np.float32)
    result = np.empty((size_wh[1], size_wh[0], 4), np.uint8)
    for channel in range(3):
        colour = np.ascontiguousarray(whole[..., channel])
        weighed = _smaller(colour * weight, size_wh).astype(np.float32) * 255
        mean = np.divide(weighed, opacity, out=_smaller(colour, size_wh).astype(np.float32), where=opacity > 0)
        result[..., channel] = np.clip(np.rint(mean), 0, 255)
    result[..., 3] = np.rint(opacity / 255)
    return Pixels.of(result)


def _smaller(array: NDArray[Any], size_wh: tuple[int, ...]) -> NDArray[Any]:
    return np.asarray(cv2.resize(array, size_wh, interpolation=cv2.INTER_AREA))
