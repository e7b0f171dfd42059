"""Cut-outs as layers: their pixels, what is visible of them, and how they are drawn onto a canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from cutaway.compositing.placing import Box, Mapping, SizeWH, mirrored
from cutaway.contract.errors import invalid_option
from cutaway.contract.limits import INPUT_LIMITS
from cutaway.wire import malformed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage
    from PIL.ImageFilter import Color3DLUT

    from cutaway.result import Cutout

VISIBLE_FROM = 16
"""Alpha from which a pixel counts for the place of a cut-out: a breath of haze far off does not move it."""

KEEP_PIXELS = INPUT_LIMITS.max_pixels
"""Decoded cut-outs are kept up to so many pixels in all, four bytes each; beyond that they are decoded again when they
are drawn, so that many large ones do not fill the memory."""

STRIP_ROWS = 512
"""Rows of the canvas that are worked on at a time."""

_SUPPORT_PX = 2
"""Reach of the bicubic kernel, the widest used, in pixels of the smaller picture."""


@dataclass(frozen=True)
class Layer:
    """One cut-out.

    Attributes:
        cutout: as the server sent it.
        box: what is visible of it, in pixels of the source picture; None where nothing is.
        extent: everything that is not wholly transparent.
    """

    cutout: Cutout
    box: Box | None
    extent: Box | None
    _kept: PILImage | None = field(default=None, repr=False)

    def image(self) -> PILImage:
        """RGBA, of the frame's size."""
        return _decoded(self.cutout) if self._kept is None else self._kept


def layers_of(cutouts: Sequence[Cutout]) -> list[Layer]:
    """Decode cut-outs and look where something is visible.

    Raises:
        InvalidOption: they are opaque or masks, so there is nothing to put onto anything.
        InferenceError: the server's answer contradicts itself.
    """
    layers, pixels = [], 0
    for cutout in cutouts:
        image = _decoded(cutout)
        pixels += image.width * image.height
        alpha = image.getchannel("A")
        box = alpha.point(lambda value: 255 if value >= VISIBLE_FROM else 0).getbbox()
        layers.append(
            Layer(
                cutout,
                _in_picture(box, cutout),
                _in_picture(alpha.getbbox(), cutout),
                image if pixels <= KEEP_PIXELS else None,
            )
        )
    return layers


def _decoded(cutout: Cutout) -> PILImage:
    image = cutout.pil()
    x1, y1, x2, y2 = cutout.frame
    if image.size != (x2 - x1, y2 - y1):
        raise malformed("a cut-out has another size than its frame")
    if image.mode != "RGBA":
        raise invalid_option("background", image.mode, "cut-outs on a transparent background, with output png or webp")
    return image


def _in_picture(box: tuple[int, int, int, int] | None, cutout: Cutout) -> Box | None:
    if box is None:
        return None
    left, top = cutout.frame[:2]
    return box[0] + left, box[1] + top, box[2] + left, box[3] + top


@dataclass(frozen=True)
class Tile:
    """Part of a layer as it comes onto the canvas: RGBA, and where its upper left corner goes."""

    image: PILImage
    left: int
    top: int


def draw(
    canvas: PILImage, layer: Layer, mapping: Mapping, source_wh: SizeWH, colours: Color3DLUT | None = None
) -> None:
    """Draw a layer onto a canvas in place, source over, strip by strip so that no second canvas is held.

    On an RGB canvas, without scaling, every channel is the exact mix by alpha, rounded once.
    """
    for first in range(0, canvas.height, STRIP_ROWS):
        tile = tile_of(layer, mapping, source_wh, canvas.width, (first, min(first + STRIP_ROWS, canvas.height)))
        if tile is None:
            continue
        image = tile.image if colours is None else tile.image.filter(colours)
        if canvas.mode == "RGBA":
            canvas.alpha_composite(image, (tile.left, tile.top))
        else:
            canvas.paste(image, (tile.left, tile.top), image)


def tile_of(layer: Layer, mapping: Mapping, source_wh: SizeWH, canvas_width: int, rows: tuple[int, int]) -> Tile | None:
    """What of a layer shows in some rows of a canvas; None where nothing does.

    Colours are weighted by alpha when pixels are resampled, so that what lies under transparent pixels comes through
    nowhere. Without scaling, pixels are copied.
    """
    from PIL import Image

    if layer.extent is None:
        return None
    image = layer.image()
    frame: Box = layer.cutout.frame
    extent = layer.extent
    if mapping.flip:
        frame, extent = mirrored(frame, source_wh[0]), mirrored(extent, source_wh[0])
    # From here on positions are those in the cut-out, mirrored if need be.
    scale = mapping.scale
    shift = mapping.dx + scale * frame[0], mapping.dy + scale * frame[1]
    x = _axis(extent[0] - frame[0], extent[2] - frame[0], image.width, scale, shift[0], (0, canvas_width))
    y = _axis(extent[1] - frame[1], extent[3] - frame[1], image.height, scale, shift[1], rows)
    if x is None or y is None:
        return None
    if mapping.flip:
        image = image.crop((image.width - x.last, y.first, image.width - x.first, y.last))
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        image = image.crop((x.first, y.first, x.last, y.last))
    if scale != 1.0:
        box = (x.source[0] - x.first, y.source[0] - y.first, x.source[1] - x.first, y.source[1] - y.first)
        image = (_reduced if scale < 1.0 else _enlarged)(image, (x.end - x.start, y.end - y.start), box)
    return Tile(image, x.start, y.start)


_Span: TypeAlias = tuple[float, float, float, float]


def _reduced(image: PILImage, size: SizeWH, box: _Span) -> PILImage:
    """With a kernel that is nowhere negative: one that is overshoots at edges, where alpha is cut off at 255 and the
    colours are not, which draws a light rim around everything."""
    from PIL import Image

    return image.convert("RGBa").resize(size, Image.Resampling.HAMMING, box=box).convert("RGBA")


def _enlarged(image: PILImage, size: SizeWH, box: _Span) -> PILImage:
    """Bicubic, in floating point: colours are divided by the alpha that overshot as they did, before it is cut off."""
    import numpy as np
    from PIL import Image

    def resized(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC, box=box), np.float32)

    pixels = np.asarray(image, np.float32)
    weights = pixels[..., 3]
    alpha = resized(weights)
    out = np.empty((size[1], size[0], 4), np.uint8)
    out[..., 3] = np.clip(alpha + 0.5, 0, 255)
    shown = np.maximum(alpha, 0.5)
    for channel in range(3):
        out[..., channel] = np.clip(resized(pixels[..., channel] * weights) / shown + 0.5, 0, 255)
    return Image.fromarray(out)


@dataclass(frozen=True)
class _Axis:
    """One axis of a drawing: pixels `start` to `end` of the canvas show the span `source` of the cut-out. The cut-out's
    pixels `first` to `last` have a part in that; some lie beyond it, where there is nothing."""

    start: int
    end: int
    source: tuple[float, float]
    first: int
    last: int


def _axis(low: float, high: float, length: int, scale: float, shift: float, shown: tuple[int, int]) -> _Axis | None:
    """For what is not transparent from `low` to `high` in a cut-out of this length, of which the canvas' pixels `shown`
    are wanted. An end that the cut-out's own edge cut off lies at the nearest pixel and takes nothing from beyond; a
    soft one gets the pixel that it reaches into."""
    hard_start, hard_end = low <= 0, high >= length
    start, end = scale * low + shift, scale * high + shift
    first_shown = round(start) if hard_start else math.floor(start)
    last_shown = max(round(end) if hard_end else math.ceil(end), first_shown + 1)
    first_shown, last_shown = max(shown[0], first_shown), min(shown[1], last_shown)
    if first_shown >= last_shown:
        return None
    source = (first_shown - shift) / scale, (last_shown - shift) / scale
    reach = 0 if scale == 1.0 else math.ceil(_SUPPORT_PX / min(scale, 1.0)) + 1
    first, last = math.floor(source[0]) - reach, math.ceil(source[1]) + reach
    if hard_start:
        source, first = (max(source[0], 0.0), source[1]), max(first, 0)
    if hard_end:
        source, last = (source[0], min(source[1], float(length))), min(last, length)
    return _Axis(first_shown, last_shown, source, first, last)
