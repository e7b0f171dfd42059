"""Where cut-outs go on a canvas: plain geometry.

Boxes are (x1, y1, x2, y2) in pixels, right and lower edges not included. A cut-out's box is that of what is visible of
it, in pixels of the upright source picture, and not its frame, which may be the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.contract.errors import invalid_option
from cutaway.contract.limits import COMPOSITE_LIMITS, COMPOSITE_SCALE

Box = tuple[float, float, float, float]
SizeWH = tuple[int, int]

ANCHORS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")


@dataclass(frozen=True)
class Placement:
    """Where cut-outs stand and how large they are. Several are placed as a group, with their distances kept.

        Placement()                                    # where they were
        Placement(anchor="bottom", scale=0.8)          # standing at the bottom, 80 % as high as the canvas
        Placement(offset_px=(-40, 0), flip=True)       # a little to the left, mirrored

    Attributes:
        anchor: which corner, edge ("bottom": its middle) or "center" of the canvas their box is put to. None keeps them
            where they were; on a canvas of another shape their height and distance from the ground keep their share of
            the canvas, and what an edge of the picture cut off stays at that edge.
        scale: height of their box as a share of the canvas' height, 0.01 to 4. None keeps the size described above.
        offset_px: moves them right and down, in pixels of the canvas.
        flip: mirrors them left to right, where they stand.

    Raises:
        InvalidOption: an attribute is out of bounds.
    """

    anchor: str | None = None
    scale: float | None = None
    offset_px: tuple[int, int] = (0, 0)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.anchor is not None and self.anchor not in ANCHORS:
            raise invalid_option("anchor", self.anchor, ", ".join(ANCHORS))
        least, most = COMPOSITE_SCALE
        if self.scale is not None and not (_is_number(self.scale) and least <= self.scale <= most):
            raise invalid_option("scale", self.scale, f"{least:g} to {most:g}")
        reach = COMPOSITE_LIMITS.max_long_side_px
        try:
            x, y = self.offset_px
        except (TypeError, ValueError):
            x = y = math.nan  # type: ignore[assignment]
        if not all(_is_number(part) and part == int(part) and abs(part) <= reach for part in (x, y)):
            raise invalid_option("offset_px", self.offset_px, f"two whole numbers from {-reach} to {reach}")


@dataclass(frozen=True)
class Mapping:
    """How pixels of the source picture land on a canvas: x → scale · x + dx, y → scale · y + dy; first mirrored in the
    picture where `flip` is set."""

    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    flip: bool = False

    def box(self, box: Box, source_wh: SizeWH) -> Box:
        """Where a box of the source picture lands."""
        x1, y1, x2, y2 = mirrored(box, source_wh[0]) if self.flip else box
        return (
            self.scale * x1 + self.dx,
            self.scale * y1 + self.dy,
            self.scale * x2 + self.dx,
            self.scale * y2 + self.dy,
        )


def mirrored(box: Box, width: float) -> Box:
    """A box after its picture of that width was mirrored left to right."""
    return width - box[2], box[1], width - box[0], box[3]


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box around all."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def mapping_for(
    box: Box, source_wh: SizeWH, canvas_wh: SizeWH, place: Placement, as_background: Mapping | None = None
) -> Mapping:
    """How a group of cut-outs comes onto a canvas.

    Args:
        box: around what is visible of them, in the source picture.
        source_wh, canvas_wh: width and height of the source picture and the canvas.
        place: the caller's wish.
        as_background: how the source picture itself came onto the canvas, where it is the background.
    """
    if as_background is not None:
        start = as_background
    elif source_wh == canvas_wh:
        start = Mapping()
    else:
        start = _elsewhere(box, source_wh, canvas_wh, place.flip)
    x1, y1, x2, y2 = start.box(box, source_wh)
    width, height = x2 - x1, y2 - y1
    scale = start.scale
    if place.scale is not None:
        grown = place.scale * canvas_wh[1] / height
        x1, y1 = (x1 + x2 - width * grown) / 2, y2 - height * grown  # the ground stays where it is
        width, height, scale = width * grown, height * grown, scale * grown
    if place.anchor is not None:
        x1 = _aligned(place.anchor, "left", "right", canvas_wh[0] - width)
        y1 = _aligned(place.anchor, "top", "bottom", canvas_wh[1] - height)
    x1, y1 = x1 + place.offset_px[0], y1 + place.offset_px[1]
    left, top, _, _ = mirrored(box, source_wh[0]) if place.flip else box
    dx, dy = x1 - scale * left, y1 - scale * top
    if scale == 1.0:  # whole pixels, so that nothing is resampled
        dx, dy = float(round(dx)), float(round(dy))
    return Mapping(scale, dx, dy, place.flip)


def _elsewhere(box: Box, source_wh: SizeWH, canvas_wh: SizeWH, flip: bool) -> Mapping:
    """Onto a canvas of another size: as high and as far from the ground as before, in shares of the canvas; not wider
    than it; and flush with an edge that cut them off before."""
    (width, height), (canvas_width, canvas_height) = source_wh, canvas_wh
    x1, y1, x2, y2 = box
    scale = min(canvas_height / height, canvas_width / (x2 - x1))
    room = canvas_width - scale * (x2 - x1)
    left = min(max((x1 + x2) / 2 / width * canvas_width - scale * (x2 - x1) / 2, 0.0), room)
    if (x1 <= 0) != (x2 >= width):
        left = 0.0 if (x1 <= 0) != flip else room
    top = y2 / height * canvas_height - scale * (y2 - y1)
    if y1 <= 0 and y2 < height:
        top = 0.0
    return Mapping(scale, left - scale * x1, top - scale * y1)


def _aligned(anchor: str, start: str, end: str, room: float) -> float:
    if start in anchor:
        return 0.0
    return room if end in anchor else room / 2


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
