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

    from cutaway.result import Cutout

SizeWH = tuple[int, int]

VISIBLE_FROM = 16  # alpha from which a pixel counts as visible for the box of a cut-out
WEBP_MAX_SIDE_PX = 16_383
HOLE_FROM = 8  # alpha from which the original is filled before it is blurred, so that its colours do not bleed


@dataclass(frozen=True)
class Transform:
    """From the source picture onto a canvas: x → scale · x + dx, y → scale · y + dy."""

    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0

    def box(self, box: Box) -> Box:
        """A box of the source picture on the canvas."""
        scale, dx, dy = self.scale, self.dx, self.dy
        return scale * box[0] + dx, scale * box[1] + dy, scale * box[2] + dx, scale * box[3] + dy


def enclose(boxes: Sequence[Box]) -> Box:
    """The smallest box around all."""
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def round_box(box: Box) -> Frame:
    """The nearest box of whole pixels, of one at least."""
    x1, y1 = round(box[0]), round(box[1])
    return x1, y1, max(x1 + 1, round(box[2])), max(y1 + 1, round(box[3]))


def clip_frame(frame: Frame, size_wh: SizeWH) -> Frame | None:
    """The part of a frame on a canvas."""
    x1, y1, x2, y2 = max(0, frame[0]), max(0, frame[1]), min(size_wh[0], frame[2]), min(size_wh[1], frame[3])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def rgba_of(cutout: Cutout) -> PILImage:
    """A cut-out decoded, each time anew, so that many large ones do not fill the memory; InvalidOption where it is
    opaque or a mask, InferenceError where it contradicts its report."""
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


def draw(canvas: PILImage, cutout: Cutout, transform: Transform, colours: list[int] | None) -> None:
    """Draw a cut-out onto a canvas in place, source over, with its colours through a table. Unscaled, channels of an
    RGB canvas are rounded once. What is not wholly transparent fills whole pixels: edges that the picture cut off stay
    hard."""
    from PIL import Image

    image, (left, top) = rgba_of(cutout), cutout.frame[:2]
    if (extent := image.getchannel("A").getbbox()) is None:
        return
    target = round_box(transform.box((extent[0] + left, extent[1] + top, extent[2] + left, extent[3] + top)))
    if (part := clip_frame(target, canvas.size)) is None:
        return
    image = image.crop(extent)
    across, down = image.width / (target[2] - target[0]), image.height / (target[3] - target[1])
    x1, y1 = (part[0] - target[0]) * across, (part[1] - target[1]) * down
    x2, y2 = (part[2] - target[0]) * across, (part[3] - target[1]) * down
    if transform.scale == 1.0:
        image = image.crop(round_box((x1, y1, x2, y2)))
    else:
        # Pillow weights the colours of RGBA by alpha, so nothing comes through of what lies under transparent pixels. A
        # kernel with negative lobes overshoots, and draws a light rim around everything.
        size, source = (part[2] - part[0], part[3] - part[1]), (x1, y1, min(x2, image.width), min(y2, image.height))
        image = image.resize(size, Image.Resampling.HAMMING, box=source)
    if colours is not None:
        image = image.point(colours)
    if canvas.mode == "RGBA":
        canvas.alpha_composite(image, part[:2])
    else:
        canvas.paste(image, part[:2], image)


def fit_background(image: PILImage, size_wh: SizeWH, fit: str, fill: str) -> PILImage:
    """An image brought to a size, see :class:`cutaway.composite.Picture`."""
    from PIL import Image, ImageOps

    kernel = Image.Resampling.HAMMING if image.mode == "RGBA" else Image.Resampling.LANCZOS
    if image.size == size_wh or fit == "stretch":
        return image.resize(size_wh, kernel)
    if fit == "cover":
        return ImageOps.fit(image, size_wh, kernel)
    if fill == "transparent":
        return ImageOps.pad(image.convert("RGBA"), size_wh, Image.Resampling.HAMMING, color="#00000000")
    return ImageOps.pad(image, size_wh, kernel, color=fill)


def fill_people(image: PILImage, alpha: PILImage) -> PILImage:
    """A picture (RGB) in which those whom an alpha (L, of its size) shows are filled from around them."""
    from PIL import ImageChops, ImageFilter

    hole = alpha.point(lambda value: 255 if value >= HOLE_FROM else 0)
    # A little larger than what was cut out: next to it are pixels that still hold some of its colour.
    hole = hole.filter(ImageFilter.BoxBlur(2 + max(image.size) // 256)).point(lambda value: 255 if value else 0)
    if hole.getextrema() == (255, 255):  # nothing is there to go by
        return image
    seen = image.copy()
    seen.putalpha(ImageChops.invert(hole))
    return spread(seen).convert("RGB")


def spread(image: PILImage) -> PILImage:
    """An RGBA picture with its transparent parts filled from around them, from coarse to fine."""
    from PIL import Image

    if max(image.size) == 1 or image.getchannel("A").getextrema()[0] == 255:
        return image
    half = image.reduce(2)
    half.putalpha(half.getchannel("A").point(lambda value: 255 if value else 0))  # little alpha makes colours inexact
    coarse = spread(half).resize(image.size, Image.Resampling.BILINEAR)
    coarse.alpha_composite(image)
    return coarse


def encode_cutout(image: PILImage, options: CutOptions) -> tuple[bytes, str, tuple[int, int]]:
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
