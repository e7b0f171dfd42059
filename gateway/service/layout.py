"""The layout options of remove.bg: region of interest, crop, scale, position, size and background of a cut-out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageChops, ImageColor, ImageOps

from gateway.service.errors import ServiceProblem

SIZES_MP = {"preview": 0.25, "small": 0.25, "regular": 0.25, "medium": 1.5, "hd": 4.0, "full": 25.0, "4k": 25.0}
SIZES_MP |= {"auto": 25.0, "50MP": 50.0}
PNG_MAX_MP = 10.0
"""Of an answer in PNG with size "full" or "auto", as remove.bg has it."""
MARGIN_MAX_PX = 500
MARGIN_MAX_PERCENT = 50

Box = tuple[int, int, int, int]
_LENGTH = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(px|%)?")


def invalid(parameter: str, message: str) -> ServiceProblem:
    """400 with remove.bg's code for the parameter."""
    return ServiceProblem(400, "INVALID_OPTION", message, title=f"invalid_{parameter}")


@dataclass(frozen=True)
class Length:
    """A number of pixels, or of per cent of something."""

    value: float
    percent: bool

    def of(self, whole_px: int) -> int:
        return round(self.value * whole_px / 100 if self.percent else self.value)


def lengths(parameter: str, text: str, counts: tuple[int, ...]) -> list[Length]:
    """One or several lengths such as "10% 20px"; a bare number is in pixels."""
    found = [_LENGTH.fullmatch(part) for part in text.split()]
    if len(found) not in counts or not all(found):
        raise invalid(
            parameter, f"{parameter} {text[:50]!r} is not {' or '.join(map(str, counts))} lengths in px or %."
        )
    return [Length(float(match[1]), match[2] == "%") for match in found if match]


@dataclass(frozen=True)
class Layout:
    """The checked options.

    Attributes:
        max_pixels: of the result.
        roi: x1, y1, x2, y2 outside of which nothing is foreground; None for the whole picture.
        margins: top, right, bottom, left around the subject; None without a crop.
        scale: the subject's share of the canvas, 0.1 to 1; None keeps it.
        position: the subject's place, 0 to 1 in x and y; None keeps it.
        channels: colours and alpha, or the alpha alone.
        background: a colour with its alpha, or a picture; None is transparent.
    """

    max_pixels: int
    roi: tuple[Length, ...] | None
    margins: tuple[Length, ...] | None
    scale: float | None
    position: tuple[float, float] | None
    channels: Literal["rgba", "alpha"]
    background: tuple[int, int, int, int] | Image.Image | None = None


def parse_roi(text: str) -> tuple[Length, ...] | None:
    return tuple(lengths("roi", text, (4,))) if text else None


def parse_margins(text: str) -> tuple[Length, ...]:
    """Top, right, bottom, left of one, two or four lengths."""
    given = lengths("crop_margin", text or "0", (1, 2, 4))
    for each in given:
        if not 0 <= each.value <= (MARGIN_MAX_PERCENT if each.percent else MARGIN_MAX_PX):
            raise invalid("crop_margin", f"A margin is 0 to {MARGIN_MAX_PX} px or {MARGIN_MAX_PERCENT} %.")
    return tuple(given * (4 // len(given)))


def parse_scale(text: str) -> float | None:
    if text in ("", "original"):
        return None
    (scale,) = lengths("scale", text, (1,))
    if not scale.percent or not 10 <= scale.value <= 100:
        raise invalid("scale", "scale is 'original' or 10% to 100%.")
    return scale.value / 100


def parse_position(text: str, scaled: bool) -> tuple[float, float] | None:
    if text in ("", "original"):
        return (0.5, 0.5) if scaled else None
    if text == "center":
        return 0.5, 0.5
    given = lengths("position", text, (1, 2))
    if not all(each.percent and 0 <= each.value <= 100 for each in given):
        raise invalid("position", "position is 'original', 'center' or one or two of 0% to 100%.")
    return given[0].value / 100, given[-1].value / 100


def parse_colour(text: str) -> tuple[int, int, int, int] | None:
    """A colour's name, or 3, 4, 6 or 8 hexadecimal digits with or without "#"."""
    if not text:
        return None
    if re.fullmatch(r"[0-9a-fA-F]{3,8}", text):
        text = f"#{text}"
    try:
        colour = ImageColor.getcolor(text, "RGBA")
    except ValueError:
        raise invalid("bg_color", f"bg_color {text[:20]!r} is no colour.") from None
    assert isinstance(colour, tuple)
    return colour[0], colour[1], colour[2], colour[3]


def arrange(cutout: Image.Image, layout: Layout) -> tuple[Image.Image, Box]:
    """Lay a cut-out out.

    Args:
        cutout: RGBA, of the size of the picture.

    Returns:
        The result (RGBA, RGB on an opaque background, or L for the alpha) and the subject's box in it.
    """
    if layout.roi:
        cutout = _within(cutout, layout.roi)
    subject = cutout.getchannel("A").getbbox() or (0, 0, *cutout.size)
    canvas, at = (0, 0, *cutout.size), subject
    if layout.margins:
        top, right, bottom, left = (
            margin.of(subject[3] - subject[1] if index % 2 == 0 else subject[2] - subject[0])
            for index, margin in enumerate(layout.margins)
        )
        canvas = (subject[0] - left, subject[1] - top, subject[2] + right, subject[3] + bottom)
    width, height = canvas[2] - canvas[0], canvas[3] - canvas[1]
    piece = cutout.crop(subject)
    at = _shifted(subject, -canvas[0], -canvas[1])
    if layout.scale:
        share = layout.scale * min(width / piece.width, height / piece.height)
        piece = piece.resize((max(1, round(piece.width * share)), max(1, round(piece.height * share))))
    if layout.position or layout.scale:
        x, y = layout.position or (0.5, 0.5)
        left, top = round(x * (width - piece.width)), round(y * (height - piece.height))
        at = (left, top, left + piece.width, top + piece.height)
    whole = Image.new("RGBA", (width, height))
    whole.paste(piece, at[:2])
    if width * height > layout.max_pixels:
        share = (layout.max_pixels / (width * height)) ** 0.5
        whole = whole.resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.LANCZOS)
        at = tuple(round(edge * share) for edge in at)
    if layout.channels == "alpha":
        return whole.getchannel("A"), at
    return _onto(whole, layout.background), at


def _within(cutout: Image.Image, roi: tuple[Length, ...]) -> Image.Image:
    """Nothing outside the region of interest is foreground."""
    sides = (*cutout.size, *cutout.size)
    x1, y1, x2, y2 = (length.of(side) for length, side in zip(roi, sides, strict=True))
    if not (0 <= x1 <= x2 <= cutout.width and 0 <= y1 <= y2 <= cutout.height):
        raise ServiceProblem(400, "INVALID_OPTION", "roi exceeds the picture.", title="roi_exceeds_bounds")
    if x1 == x2 or y1 == y2:
        raise ServiceProblem(400, "INVALID_OPTION", "roi is empty.", title="roi_region_empty")
    inside = Image.new("L", cutout.size)
    inside.paste(255, (x1, y1, x2, y2))
    cutout = cutout.copy()
    cutout.putalpha(ImageChops.darker(cutout.getchannel("A"), inside))
    return cutout


def _shifted(box: Box, x: int, y: int) -> Box:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _onto(picture: Image.Image, background: tuple[int, int, int, int] | Image.Image | None) -> Image.Image:
    if background is None:
        return picture
    if isinstance(background, Image.Image):
        under = ImageOps.fit(background.convert("RGBA"), picture.size)
    else:
        under = Image.new("RGBA", picture.size, background)
    under.alpha_composite(picture)
    return under.convert("RGB") if under.getchannel("A").getextrema() == (255, 255) else under
