"""Whole-pixel rectangles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""``x1, y1, x2, y2`` in pixels of the upright picture."""


@dataclass(frozen=True)
class Rect:
    """A rectangle of whole pixels: columns ``x1 … x2 − 1`` and rows ``y1 … y2 − 1``."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width(self) -> int:
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        return self.y2 - self.y1

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def empty(self) -> bool:
        return self.x2 <= self.x1 or self.y2 <= self.y1

    @property
    def slices(self) -> tuple[slice, slice]:
        """Indices into an HW or HWC array of the same origin."""
        return slice(self.y1, self.y2), slice(self.x1, self.x2)

    def as_list(self) -> list[int]:
        return [self.x1, self.y1, self.x2, self.y2]

    def grown(self, margin_px: int) -> Rect:
        """Larger by a margin on every side; may leave the picture."""
        return Rect(self.x1 - margin_px, self.y1 - margin_px, self.x2 + margin_px, self.y2 + margin_px)

    def within(self, other: Rect) -> Rect:
        """The part of this rectangle that lies in another one; `empty` where there is none."""
        return Rect(max(self.x1, other.x1), max(self.y1, other.y1), min(self.x2, other.x2), min(self.y2, other.y2))

    def seen_from(self, other: Rect) -> Rect:
        """The same pixels, counted from the corner of `other`."""
        return Rect(self.x1 - other.x1, self.y1 - other.y1, self.x2 - other.x1, self.y2 - other.y1)


def whole(width: int, height: int) -> Rect:
    return Rect(0, 0, width, height)


def bounding(rects: Sequence[Rect]) -> Rect:
    """The smallest rectangle that holds all of some."""
    return Rect(
        min(rect.x1 for rect in rects),
        min(rect.y1 for rect in rects),
        max(rect.x2 for rect in rects),
        max(rect.y2 for rect in rects),
    )


def enclosing(box: Box) -> Rect:
    """The smallest rectangle of whole pixels that holds a box."""
    return Rect(math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
