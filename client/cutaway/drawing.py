"""Cut-outs drawn onto a canvas, and backgrounds fitted, filled and blurred."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cutaway.contract.errors import invalid_option
from cutaway.contract.options import CutOptions
from cutaway.report import Box, Frame
from cutaway.transports.failures import malformed

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from PIL.ImageFilter import Color3DLUT

    from cutaway.result import Cutout

SizeWH = tuple[int, int]

VISIBLE_FROM = 16  # alpha from which a pixel counts as visible for the box of a cut-out
WEBP_MAX_SIDE_PX = 16_383
HOLE_FROM = 8  # alpha from which the original is filled before it is blurred, so that its colours do not bleed
HOLE_SIDE_PX = 512  # longer side of the copy on which it is filled: far from its edge a hole is smooth


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
        left, right = (source_wh[0] - box[2], source_wh[0] - box[0]) if self.flip else (box[0], box[2])
        scale, dx, dy = self.scale, self.dx, self.dy
        return scale * left + dx, scale * box[1] + dy, scale * right + dx, scale * box[3] + dy


def around(boxes: Sequence[Box]) -> Box:
    """The smallest box around all."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def whole(box: Box) -> Frame:
    """The nearest box of whole pixels, of one at least."""
    x1, y1 = round(box[0]), round(box[1])
    return x1, y1, max(x1 + 1, round(box[2])), max(y1 + 1, round(box[3]))


def within(frame: Frame, size_wh: SizeWH) -> Frame | None:
    """The part of a frame on a canvas."""
    x1, y1, x2, y2 = max(0, frame[0]), max(0, frame[1]), min(size_wh[0], frame[2]), min(size_wh[1], frame[3])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def rgba_of(cutout: Cutout) -> PILImage:
    """A cut-out decoded, of its frame's size; done again each time, so that many large ones do not fill the memory.

    Raises:
        InvalidOption: it is opaque or a mask. InferenceError: it contradicts its report.
    """
    image, frame = cutout.pil(), cutout.frame
    if image.size != (frame[2] - frame[0], frame[3] - frame[1]):
        raise malformed("a cut-out has another size than its frame")
    if image.mode != "RGBA":
        raise invalid_option("background", image.mode, "cut-outs on a transparent background, with output png or webp")
    return image


def visible_box(cutout: Cutout) -> Box | None:
    """The box around a cut-out's visible pixels in the source picture; raises as :func:`rgba_of` does."""
    seen = rgba_of(cutout).getchannel("A").point(lambda value: 255 if value >= VISIBLE_FROM else 0).getbbox()
    left, top = cutout.frame[:2]
    return seen and (seen[0] + left, seen[1] + top, seen[2] + left, seen[3] + top)


def draw(canvas: PILImage, cutout: Cutout, mapping: Mapping, source_wh: SizeWH, colours: Color3DLUT | None) -> None:
    """Draw a cut-out onto a canvas in place, source over. Without scaling, channels of an RGB canvas are rounded once.
    The part that is not wholly transparent fills the nearest whole pixels, so that edges that the picture cut off stay
    hard."""
    from PIL import Image

    image = rgba_of(cutout)
    if (extent := image.getchannel("A").getbbox()) is None:
        return
    left, top = cutout.frame[:2]
    target = whole(mapping.box((extent[0] + left, extent[1] + top, extent[2] + left, extent[3] + top), source_wh))
    x1, y1 = target[:2]
    x2, y2 = max(target[2], x1 + 1), max(target[3], y1 + 1)
    part = within((x1, y1, x2, y2), canvas.size)
    if part is None:
        return
    if mapping.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        extent = image.width - extent[2], extent[1], image.width - extent[0], extent[3]
    across, down = (extent[2] - extent[0]) / (x2 - x1), (extent[3] - extent[1]) / (y2 - y1)
    start = extent[0] + (part[0] - x1) * across, extent[1] + (part[1] - y1) * down
    end = min(extent[0] + (part[2] - x1) * across, extent[2]), min(extent[1] + (part[3] - y1) * down, extent[3])
    if mapping.scale == 1.0:
        image = image.crop(whole((*start, *end)))
    else:
        # Pillow weights the colours of RGBA by alpha, so nothing comes through of what lies under transparent pixels. A
        # kernel with negative lobes overshoots, and draws a light rim around everything.
        size = part[2] - part[0], part[3] - part[1]
        image = image.resize(size, Image.Resampling.HAMMING, box=(*start, *end))
    if colours is not None:
        image = image.filter(colours)
    if canvas.mode == "RGBA":
        canvas.alpha_composite(image, part[:2])
    else:
        canvas.paste(image, part[:2], image)


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


def encoded_cutout(image: PILImage, options: CutOptions) -> tuple[bytes, str, tuple[int, int]]:
    """A cut-out (RGBA, RGB before a background, L of a mask) as a file in the form and size of the options, with its
    format ("png", "webp", "jpeg" or "zip") and its size in pixels."""
    from PIL import Image

    def saved(part: PILImage, kind: str, **how: Any) -> bytes:
        file = io.BytesIO()
        part.save(file, kind, **how)
        return file.getvalue()

    if options.max_side_px is not None and max(image.size) > options.max_side_px:
        mode = image.mode
        image = image.convert("RGBa") if mode == "RGBA" else image.copy()  # premultiplied: edges keep their colours
        image.thumbnail((options.max_side_px,) * 2, Image.Resampling.BOX)
        image = image.convert(mode)
    lossy = {"quality": options.quality, "subsampling": 0}
    if options.output == "layers":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("color.jpg", saved(image.convert("RGB"), "JPEG", **lossy))
            archive.writestr("alpha.png", saved(image.getchannel("A"), "PNG"))
        return file.getvalue(), "zip", image.size
    if options.output == "jpeg":
        return saved(image, "JPEG", **lossy), "jpeg", image.size
    if options.output == "webp" and max(image.size) <= WEBP_MAX_SIDE_PX:
        return saved(image, "WEBP", quality=options.quality, method=2), "webp", image.size
    return saved(image, "PNG", compress_level=1), "png", image.size
