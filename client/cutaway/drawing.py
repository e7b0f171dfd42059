"""Layers and backgrounds of a composite: cut-outs drawn onto a canvas, pictures fitted and blurred."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.contract.errors import invalid_option
from cutaway.report import Box, Frame
from cutaway.transports.failures import malformed

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from PIL.ImageFilter import Color3DLUT

    from cutaway.result import Cutout

SizeWH = tuple[int, int]

VISIBLE_FROM = 16
"""Alpha from which a pixel counts as visible for the box of a cut-out."""

HOLE_FROM = 8
"""Alpha from which the original behind a cut-out is filled before it is blurred, so that its colours do not bleed."""

HOLE_SIDE_PX = 512
"""Longer side of the copy on which it is filled: far from its edge a hole is smooth."""


@dataclass(frozen=True)
class Mapping:
    """The mapping of the source picture onto a canvas: x → scale · x + dx, y → scale · y + dy, after mirroring with
    `flip`."""

    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    flip: bool = False

    def box(self, box: Box, source_wh: SizeWH) -> Box:
        """A box of the source picture on the canvas."""
        x1, y1, x2, y2 = mirrored(box, source_wh[0]) if self.flip else box
        scale, dx, dy = self.scale, self.dx, self.dy
        return scale * x1 + dx, scale * y1 + dy, scale * x2 + dx, scale * y2 + dy


def mirrored(box: Box, width: float) -> Box:
    """A box after its picture of that width was mirrored left to right."""
    return width - box[2], box[1], width - box[0], box[3]


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box around all."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def whole(box: Box) -> Frame:
    """The nearest box of whole pixels."""
    return round(box[0]), round(box[1]), round(box[2]), round(box[3])


@dataclass(frozen=True)
class Layer:
    """One cut-out, which is decoded again to be drawn, so that many large ones do not fill the memory.

    Attributes:
        box: around its visible pixels, in pixels of the source picture; None without any.
        extent: around the pixels that are not fully transparent, in pixels of the cut-out.
    """

    cutout: Cutout
    box: Box | None = None
    extent: Box | None = None

    def image(self) -> PILImage:
        """RGBA, of the frame's size."""
        image, frame = self.cutout.pil(), self.cutout.frame
        if image.size != (frame[2] - frame[0], frame[3] - frame[1]):
            raise malformed("a cut-out has another size than its frame")
        if image.mode != "RGBA":
            wanted = "cut-outs on a transparent background, with output png or webp"
            raise invalid_option("background", image.mode, wanted)
        return image


def layer_of(cutout: Cutout) -> Layer:
    """A cut-out as a layer.

    Raises:
        InvalidOption: it is opaque or a mask. InferenceError: it contradicts its report.
    """
    alpha, (left, top) = Layer(cutout).image().getchannel("A"), cutout.frame[:2]
    seen = alpha.point(lambda value: 255 if value >= VISIBLE_FROM else 0).getbbox()
    box = seen and (seen[0] + left, seen[1] + top, seen[2] + left, seen[3] + top)
    return Layer(cutout, box, alpha.getbbox())


def draw(canvas: PILImage, layer: Layer, mapping: Mapping, source_wh: SizeWH, colours: Color3DLUT | None) -> None:
    """Draw a layer onto a canvas in place, source over. Without scaling, channels of an RGB canvas are rounded once."""
    from PIL import Image

    image, extent, scale, frame = layer.image(), layer.extent, mapping.scale, tuple(map(float, layer.cutout.frame))
    if extent is None:
        return
    left, top = frame[:2]
    if mapping.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        extent, left = mirrored(extent, image.width), source_wh[0] - frame[2]
    x = _axis((extent[0], extent[2]), image.width, scale, mapping.dx + scale * left, canvas.width)
    y = _axis((extent[1], extent[3]), image.height, scale, mapping.dy + scale * top, canvas.height)
    if x is None or y is None:
        return
    (x1, x2), (left, right), (first_x, last_x) = x
    (y1, y2), (top, bottom), (first_y, last_y) = y
    image = image.crop((first_x, first_y, last_x, last_y))
    if scale != 1.0:
        # Pillow weights the colours of RGBA by alpha, so nothing comes through of what lies under transparent pixels. A
        # kernel with negative lobes overshoots, and draws a light rim around everything.
        part = left - first_x, top - first_y, right - first_x, bottom - first_y
        image = image.resize((x2 - x1, y2 - y1), Image.Resampling.HAMMING, box=part)
    if colours is not None:
        image = image.filter(colours)
    if canvas.mode == "RGBA":
        canvas.alpha_composite(image, (x1, y1))
    else:
        canvas.paste(image, (x1, y1), image)


def _axis(
    extent: tuple[float, float], length: int, scale: float, shift: float, canvas_length: int
) -> tuple[tuple[int, int], tuple[float, float], tuple[int, int]] | None:
    """Along one axis: the pixels of the canvas that show what is not transparent of a cut-out of this length, the span
    of the cut-out that they show, and its pixels that have a part in that; None off the canvas. An end that the
    cut-out's own edge cut off lies at the nearest pixel and stays hard; a soft one gets the pixel it reaches into."""
    low, high = (scale * end + shift for end in extent)
    hard_low, hard_high = extent[0] <= 0, extent[1] >= length
    start = round(low) if hard_low else math.floor(low)
    end = max(round(high) if hard_high else math.ceil(high), start + 1)
    start, end = max(0, start), min(canvas_length, end)
    if start >= end:
        return None
    reach = 0 if scale == 1.0 else math.ceil(1 / min(scale, 1.0)) + 1  # the kernel's
    span = (start - shift) / scale, (end - shift) / scale
    first, last = math.floor(span[0]) - reach, math.ceil(span[1]) + reach
    if hard_low:
        span, first = (max(span[0], 0.0), span[1]), max(first, 0)
    if hard_high:
        span, last = (span[0], min(span[1], float(length))), min(last, length)
    return (start, end), span, (first, last)


# -------------------------------------------------------------------------------------------------------- backgrounds


def flat(size_wh: SizeWH, colour: str) -> PILImage:
    """One colour "#RRGGBB" (RGB) or "transparent" (RGBA)."""
    from PIL import Image

    return Image.new("RGBA", size_wh) if colour == "transparent" else Image.new("RGB", size_wh, colour)


def fitted(image: PILImage, size_wh: SizeWH, fit: str, fill: str) -> PILImage:
    """An image brought to a size, see :class:`cutaway.composite.Picture`."""
    from PIL import Image, ImageOps

    kernel = Image.Resampling.HAMMING if image.mode == "RGBA" else Image.Resampling.LANCZOS
    if image.size == size_wh or fit == "stretch":
        return image.resize(size_wh, kernel)
    if fit == "cover":
        return ImageOps.fit(image, size_wh, kernel)
    inner, canvas = ImageOps.contain(image, size_wh, kernel), flat(size_wh, fill)
    place = (size_wh[0] - inner.width) // 2, (size_wh[1] - inner.height) // 2
    canvas.paste(inner, place, inner if inner.mode == "RGBA" and canvas.mode == "RGB" else None)
    return canvas


def blurred(image: PILImage, px: int) -> PILImage:
    """Blurred by a Gaussian of this standard deviation."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(px))


def filled(image: PILImage, alpha: PILImage) -> PILImage:
    """A picture (RGB) in which those whom an alpha (L, of its size) shows are filled from around them."""
    from PIL import Image, ImageChops, ImageFilter

    factor = -(-max(image.size) // HOLE_SIDE_PX)
    hole = alpha.point(lambda value: 255 if value >= HOLE_FROM else 0).reduce(factor)
    # A little larger than what was cut out: next to it are pixels that still hold some of its colour.
    hole = hole.point(lambda value: 255 if value else 0).filter(ImageFilter.MaxFilter(5))
    hole = hole.resize((hole.width * factor, hole.height * factor), Image.Resampling.NEAREST).crop((0, 0, *image.size))
    if hole.getextrema() in ((0, 0), (255, 255)):  # nothing is missing, or nothing is there to go by
        return image
    seen = image.copy()
    seen.putalpha(ImageChops.invert(hole))
    fill = _spread(seen.reduce(factor)).convert("RGB").resize(hole.size, Image.Resampling.BILINEAR)
    return Image.composite(fill, image, hole)


def _spread(image: PILImage) -> PILImage:
    """An RGBA picture with its transparent parts filled from around them, from coarse to fine."""
    from PIL import Image

    if max(image.size) == 1 or image.getchannel("A").getextrema()[0] == 255:
        return image
    coarse = _spread(image.reduce(2)).resize(image.size, Image.Resampling.BILINEAR)
    coarse.alpha_composite(image)
    return coarse
