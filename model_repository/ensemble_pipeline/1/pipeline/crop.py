"""The crop of a person for the matting network."""

from __future__ import annotations

import math

from pipeline.geometry import Box, Rect
from pipeline.tuning import CROP_CONTEXT, CROP_MIN_ASPECT, DOMINANT_SHARE, WHOLE_PICTURE_SHARE


def crop_rect(box: Box, frame: Rect, alone: bool = False) -> Rect:
    """A person's box with context, within the picture; the whole picture where the person fills it."""
    x1, y1, x2, y2 = box
    if alone and (x2 - x1) * (y2 - y1) >= DOMINANT_SHARE * frame.area:
        return frame
    width, height = (x2 - x1) * (1 + 2 * CROP_CONTEXT), (y2 - y1) * (1 + 2 * CROP_CONTEXT)
    width, height = max(width, height * CROP_MIN_ASPECT), max(height, width * CROP_MIN_ASPECT)
    left, top = (x1 + x2 - width) / 2, (y1 + y2 - height) / 2
    rect = Rect(math.floor(left), math.floor(top), math.ceil(left + width), math.ceil(top + height)).within(frame)
    return frame if rect.area >= WHOLE_PICTURE_SHARE * frame.area else rect
