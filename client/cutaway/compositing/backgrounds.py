"""What stands behind: a colour, nothing, another picture, or the blurred original."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cutaway.compositing.layers import STRIP_ROWS, Layer
from cutaway.compositing.placing import Mapping, SizeWH
from cutaway.contract.errors import invalid_option
from cutaway.contract.headers import PictureHeader, check_dimensions
from cutaway.contract.limits import COMPOSITE_LIMITS, OPTIONS
from cutaway.contract.options import parse_options
from cutaway.inputs import decode_input
from cutaway.inputs import ImageInput

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

FITS = ("cover", "contain", "stretch")

_HOLE_FROM = 8
"""Alpha from which the original behind a cut-out is made up before it is blurred, lest its colours glow around it."""

_HOLE_SIDE_PX = 512
"""Longer side of the copy on which it is made up: what is far from anything seen is smooth."""

_HOLE_MARGIN = 5
"""Side of the window on that copy by which the hole grows: two pixels to each side."""

_GREY = (128, 128, 128)
"""What a transparent original stands on, as it does for the server's models."""


@dataclass(frozen=True)
class Blur:
    """The original, blurred, without whom was cut out of it.

    Attributes:
        px: the Gaussian's standard deviation in pixels of the result, 1 to 100.

    Raises:
        InvalidOption: it is out of bounds.
    """

    px: int = 20

    def __post_init__(self) -> None:
        option = OPTIONS["background"]
        whole = isinstance(self.px, int) and not isinstance(self.px, bool)
        if not whole or not (option.minimum or 0) <= self.px <= (option.maximum or 0):
            raise invalid_option("px", self.px, f"a whole number from {option.minimum:g} to {option.maximum:g}")


@dataclass(frozen=True)
class Picture:
    """Another picture.

    Attributes:
        image: as for :meth:`cutaway.Client.cut`, with the same limits. What is transparent in it stays so.
        fit: for a result of another size: "cover" fills it and cuts off what is beyond, "contain" shows all, "stretch"
            fills it and distorts.
        fill: "#RRGGBB" or "transparent": what "contain" leaves over.

    Raises:
        InvalidOption: another `fit` or `fill`.
    """

    image: ImageInput = field(repr=False)
    fit: Literal["cover", "contain", "stretch"] = "cover"
    fill: str = "#FFFFFF"

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise invalid_option("fit", self.fit, ", ".join(FITS))
        if not isinstance(self.fill, str) or not re.fullmatch("transparent|#[0-9a-fA-F]{6}", self.fill):
            raise invalid_option("fill", self.fill, "transparent, #RRGGBB")


Onto: TypeAlias = str | Blur | Picture | ImageInput
"""What cut-outs are put onto: "transparent", "#RRGGBB", "blur:<px>", :class:`Blur`, :class:`Picture`, or any picture as
the client takes it (a path, bytes, a PIL image, …), which covers the result."""


@dataclass(frozen=True)
class Scene:
    """A canvas and what is known of it.

    Attributes:
        canvas: RGB, or RGBA where it is transparent somewhere.
        source: how the source picture came onto it, where it is the background.
        is_picture: whether it is another picture, whose light the cut-outs may take on.
    """

    canvas: PILImage
    source: Mapping | None = None
    is_picture: bool = False


def scene_of(
    onto: Onto, original: Callable[[], PILImage], source_wh: SizeWH, size_wh: SizeWH | None, layers: Sequence[Layer]
) -> Scene:
    """Make the canvas.

    Args:
        onto: what the caller wants behind.
        original: decodes the source picture, upright; asked only where it is needed.
        source_wh: its size.
        size_wh: of the canvas; None for the picture's own, or the source's where there is none.
        layers: what was cut out.

    Raises:
        InvalidOption: a colour or a blur that is none.
        OSError, TypeError, InputError: the picture, see :func:`cutaway.inputs.encode`.
    """
    wanted = _read(onto)
    if isinstance(wanted, Picture):
        image = decode_input(wanted.image)
        return Scene(_fitted(image, size_wh or image.size, wanted.fit, wanted.fill), is_picture=True)
    size = size_wh or source_wh
    if isinstance(wanted, Blur):
        scale = max(size[0] / source_wh[0], size[1] / source_wh[1])
        source = Mapping(scale, (size[0] - scale * source_wh[0]) / 2, (size[1] - scale * source_wh[1]) / 2)
        image = _without(_opaque(original()), layers)
        return Scene(_blurred(_fitted(image, size, "cover", ""), wanted.px), source=source)
    return Scene(_flat(size, wanted))


def check_size(size_px: object) -> SizeWH | None:
    """The size of a result, as a caller gives it.

    Raises:
        InvalidOption: not two whole numbers of 1 and more.
        TooManyPixels, ResolutionTooLarge: more than a picture may have.
    """
    if size_px is None:
        return None
    parts: Any = size_px if isinstance(size_px, (tuple, list)) and len(size_px) == 2 else (None, None)
    if not all(isinstance(part, int) and not isinstance(part, bool) and part >= 1 for part in parts):
        raise invalid_option("size_px", size_px, "a width and a height in whole pixels")
    check_dimensions(PictureHeader("png", *parts), COMPOSITE_LIMITS)
    return parts[0], parts[1]


def _read(onto: Onto) -> str | Blur | Picture:
    if isinstance(onto, (Blur, Picture)):
        return onto
    if isinstance(onto, str) and (onto == "transparent" or onto.startswith(("#", "blur:"))):
        found = parse_options({"background": onto}).background
        return onto if found.blur_px is None else Blur(found.blur_px)
    return Picture(onto)


def _flat(size_wh: SizeWH, colour: str) -> PILImage:
    from PIL import Image

    if colour == "transparent":
        return Image.new("RGBA", size_wh, (0, 0, 0, 0))
    return Image.new("RGB", size_wh, colour)


# ----------------------------------------------------------------------------------------------- another picture


def _fitted(image: PILImage, size_wh: SizeWH, fit: str, fill: str) -> PILImage:
    if image.size == size_wh:
        return image
    (width, height), (canvas_width, canvas_height) = image.size, size_wh
    if fit == "stretch":
        return _resized(image, size_wh, (0, 0, width, height))
    if fit == "cover":
        scale = max(canvas_width / width, canvas_height / height)
        left, top = (width - canvas_width / scale) / 2, (height - canvas_height / scale) / 2
        return _resized(
            image, size_wh, (max(0, left), max(0, top), min(width, width - left), min(height, height - top))
        )
    scale = min(canvas_width / width, canvas_height / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    whole = _resized(image, inner, (0, 0, width, height))
    canvas = _flat(size_wh, fill)
    place = (canvas_width - inner[0]) // 2, (canvas_height - inner[1]) // 2
    if whole.mode == "RGBA" and canvas.mode == "RGBA":
        canvas.alpha_composite(whole, place)
    else:
        canvas.paste(whole, place, whole if whole.mode == "RGBA" else None)
    return canvas


def _resized(image: PILImage, size_wh: SizeWH, box: tuple[float, float, float, float]) -> PILImage:
    from PIL import Image

    if image.mode != "RGBA":
        return image.resize(size_wh, Image.Resampling.LANCZOS, box=box)
    return (
        image.convert("RGBa").resize(size_wh, Image.Resampling.HAMMING, box=box).convert("RGBA")
    )  # overshoots nowhere


# -------------------------------------------------------------------------------------------- the blurred original


def _opaque(image: PILImage) -> PILImage:
    from PIL import Image

    if image.mode != "RGBA":
        return image
    canvas = Image.new("RGB", image.size, _GREY)
    canvas.paste(image, (0, 0), image)
    return canvas


def _without(image: PILImage, layers: Sequence[Layer]) -> PILImage:
    """The picture with what was cut out made up from what is around it; changes `image`."""
    from PIL import Image, ImageChops, ImageFilter

    hole = Image.new("L", image.size, 0)
    for layer in layers:
        if layer.extent is None:
            continue
        frame = layer.cutout.frame
        alpha = layer.image().getchannel("A").point(lambda value: 255 if value >= _HOLE_FROM else 0)
        hole.paste(ImageChops.lighter(hole.crop(frame), alpha), frame[:2])
    factor = -(-max(image.size) // _HOLE_SIDE_PX)
    # A little larger than what was cut out: next to it are pixels that still hold some of its colour.
    small = hole.reduce(factor).point(lambda value: 255 if value else 0).filter(ImageFilter.MaxFilter(_HOLE_MARGIN))
    hole = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST).crop(
        (0, 0, *image.size)
    )
    box = hole.getbbox()
    if box is None or hole.getextrema() == (255, 255):  # nothing is missing, or nothing is there to go by
        return image
    image.paste((0, 0, 0), (0, 0), hole)
    colours = np.asarray(image.reduce(factor), np.float32)
    seen = np.asarray(ImageChops.invert(hole).reduce(factor), np.float32)[..., None] / 255
    made_up = Image.fromarray(np.rint(_spread(colours, seen)).astype(np.uint8))
    part = tuple(side / factor for side in box)
    enlarged = made_up.resize(
        (box[2] - box[0], box[3] - box[1]),
        Image.Resampling.BILINEAR,
        box=(part[0], part[1], min(part[2], made_up.width), min(part[3], made_up.height)),
    )
    image.paste(enlarged, box[:2], hole.crop(box))
    return image


def _spread(colours: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill what is not seen from what is, from coarse to fine (pull and push).

    Args:
        colours: (h, w, 3), 0 to 255, times `seen`.
        seen: (h, w, 1), 0 to 1; somewhere more than 0.
    """
    height, width = seen.shape[:2]
    if height == 1 and width == 1:
        return np.asarray(colours / np.maximum(seen, 1e-6), np.float32)
    total, weight = _halved(colours), _halved(seen)
    share = np.minimum(weight, 1) / np.maximum(weight, 1e-6)
    behind = _doubled(_spread(total * share, weight * share), width, height)
    return np.asarray(colours + (1 - seen) * behind, np.float32)


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    even = np.pad(values, ((0, values.shape[0] % 2), (0, values.shape[1] % 2), (0, 0)))
    return np.asarray(even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2], np.float32)


def _doubled(values: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Twice as large with linear steps in between, cut to a size."""
    from PIL import Image

    twice = values.shape[1] * 2, values.shape[0] * 2
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(values[..., plane])).resize(twice, Image.Resampling.BILINEAR))
        for plane in range(values.shape[2])
    ]
    return np.asarray(np.stack(planes, axis=-1)[:height, :width], np.float32)


def _blurred(image: PILImage, px: int) -> PILImage:
    """Blurred strip by strip, since a blur takes two copies of what it works on; no seam shows, since every strip is
    blurred with what is around it."""
    from PIL import Image, ImageFilter

    result = Image.new("RGB", image.size)
    margin = 3 * px + 8  # Pillow's Gaussian is three boxes, which together reach three deviations and a little
    for top in range(0, image.height, STRIP_ROWS):
        bottom = min(top + STRIP_ROWS, image.height)
        first, last = max(0, top - margin), min(image.height, bottom + margin)
        strip = image.crop((0, first, image.width, last)).filter(ImageFilter.GaussianBlur(px))
        result.paste(strip.crop((0, top - first, image.width, bottom - first)), (0, top))
    return result
