"""Cut-outs onto something else: a colour, another picture, or the blurred original.

    result = client.composite("photo.jpg", "beach.jpg", place=Placement(anchor="bottom", scale=0.8), match_colour=0.5)
    result.save("at-the-beach.png")

Everything is computed on the caller's machine from what :meth:`cutaway.Client.cut` returned. Colours are mixed in sRGB,
as the server does. Boxes are (x1, y1, x2, y2) in pixels, right and lower edges not included.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from cutaway.colour_match import matching, samples
from cutaway.contract.errors import invalid_option
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.limits import (
    COMPOSITE_LIMITS,
    COMPOSITE_OUTPUTS,
    COMPOSITE_QUALITY,
    COMPOSITE_SCALE,
    MEDIA_TYPES,
    OPTIONS,
)
from cutaway.contract.options import parse_options
from cutaway.decode import decode_upright
from cutaway.drawing import (
    Layer,
    Mapping,
    SizeWH,
    around,
    blurred,
    draw,
    filled,
    fitted,
    flat,
    layer_of,
    mirrored,
    whole,
)
from cutaway.inputs import ImageInput, decode_input
from cutaway.report import Box, Frame
from cutaway.result import EncodedResult

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from cutaway.result import CutResult

__all__ = ["ANCHORS", "Blur", "CompositeResult", "Onto", "Picture", "Placement", "compose"]

ANCHORS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
FITS = ("cover", "contain", "stretch")

SURROUNDINGS = 0.5
"""Margin of the box of the cut-outs, on each side, whose colours are matched."""

_SAVING: dict[str, dict[str, Any]] = {
    "jpeg": {"subsampling": 0},
    "webp": {"method": 2},
    "png": {"compress_level": 1},
}


@dataclass(frozen=True)
class Placement:
    """Position and size of cut-outs. Several are placed as a group, with their distances kept.

        Placement()                                    # where they were
        Placement(anchor="bottom", scale=0.8)          # at the bottom, 80 % as high as the canvas
        Placement(offset_px=(-40, 0), flip=True)       # a little to the left, mirrored

    Attributes:
        anchor: corner, edge ("bottom": its middle) or "center" of the canvas for their box. None keeps their position;
            on a canvas of another shape height and distance from the bottom keep their share of the canvas, and a side
            that an edge of the picture cut off stays at that edge.
        scale: height of their box as a share of the canvas' height, 0.01 to 4. None keeps the size described above.
        offset_px: shift to the right and down, in pixels of the canvas.
        flip: mirrored left to right, in their place.

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
        if self.scale is not None and not _is_number(self.scale, least, most):
            raise invalid_option("scale", self.scale, f"{least:g} to {most:g}")
        reach = COMPOSITE_LIMITS.max_long_side_px
        offset: Any = self.offset_px
        if not (isinstance(offset, (tuple, list)) and len(offset) == 2) or not all(
            _is_number(part, -reach, reach) and part == int(part) for part in offset
        ):
            raise invalid_option("offset_px", offset, f"two whole numbers from {-reach} to {reach}")


@dataclass(frozen=True)
class Blur:
    """The original, blurred, without the people that were cut out.

    Attributes:
        px: the Gaussian's standard deviation in pixels of the result, 1 to 100.

    Raises:
        InvalidOption: it is out of bounds.
    """

    px: int = 20

    def __post_init__(self) -> None:
        least, most = OPTIONS["background"].minimum or 0, OPTIONS["background"].maximum or 0
        if not isinstance(self.px, int) or not _is_number(self.px, least, most):
            raise invalid_option("px", self.px, f"a whole number from {least:g} to {most:g}")


@dataclass(frozen=True)
class Picture:
    """Another picture.

    Attributes:
        image: as for :meth:`cutaway.Client.cut`, with the same limits. Its transparent parts stay transparent.
        fit: for a result of another size: "cover" fills it and crops, "contain" shows all, "stretch"
            fills it and distorts.
        fill: "#RRGGBB" or "transparent": the margins of "contain".

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
"""A composite's background: "transparent", "#RRGGBB", "blur:<px>", :class:`Blur`, :class:`Picture`, or any picture as
the client takes it (a path, bytes, a PIL image, …), which covers the result."""


@dataclass(frozen=True, eq=False)
class CompositeResult(EncodedResult):
    """A finished picture.

    Attributes:
        data: the encoded file.
        media_type: "image/png", "image/webp" or "image/jpeg".
        width_px, height_px: its size.
        frames: x1, y1, x2, y2 around what is visible of each cut-out, in order, in pixels of the result; beyond its
            edges where a cut-out is, and without area where nothing of it is visible.
        cut: the result of the cut, with its origin, times and warnings.
    """

    data: bytes = field(repr=False)
    media_type: str
    width_px: int
    height_px: int
    frames: tuple[Frame, ...]
    cut: CutResult | None = field(default=None, repr=False)

    @property
    def format(self) -> str:
        """ "png", "webp" or "jpeg"."""
        return self._file()[1]


def compose(
    cut: CutResult,
    original: bytes,
    onto: Onto,
    *,
    place: Placement | Sequence[Placement] | None = None,
    match_colour: float = 0.0,
    output: str = "png",
    quality: int = COMPOSITE_QUALITY,
    size_px: tuple[int, int] | None = None,
) -> CompositeResult:
    """Put the cut-outs of a result onto something else.

    Args:
        cut: cut-outs on transparent, decontaminated best: soft edges keep the old background's colour otherwise.
        original: the file that they were cut from; read for a blur only.
        onto: the background, see :data:`Onto`.
        place: one for all cut-outs together, or one for each. None keeps them where they were, see :class:`Placement`.
        match_colour: strength of the colour match with the surroundings, 0 to 1; only onto another picture.
        output: "png", "webp" or "jpeg", which cannot be transparent.
        quality: of a WebP or JPEG, 1 to 100.
        size_px: width and height of the result. Otherwise those of the picture behind, or of the original.

    Raises:
        InvalidOption: an argument is out of bounds; a colour match where there is no other picture; a transparent JPEG.
        OSError, TypeError, InputError: the picture behind, see :func:`cutaway.inputs.encode`.
        InferenceError: the cut-outs contradict their report.
    """
    if not _is_number(match_colour, 0, 1):
        raise invalid_option("match_colour", match_colour, "0 to 1")
    if output not in COMPOSITE_OUTPUTS:
        raise invalid_option("output", output, ", ".join(COMPOSITE_OUTPUTS))
    if not isinstance(quality, int) or not _is_number(quality, 1, 100):
        raise invalid_option("quality", quality, "1 to 100")
    size_wh = check_size(size_px)
    source_wh = cut.report.width_px, cut.report.height_px
    layers = [layer_of(cutout) for cutout in cut.cutouts]
    visible = [layer.box for layer in layers if layer.box is not None]
    together = place is None or isinstance(place, Placement)
    places: list[Any] = [place or Placement()] * len(layers) if together else list(place)  # type: ignore[arg-type]
    if len(places) != len(layers) or not all(isinstance(each, Placement) for each in places):
        raise invalid_option("place", f"{len(places)} placements", f"one, or as many as cut-outs: {len(layers)}")
    canvas, source, is_picture = _canvas(onto, original, source_wh, size_wh, layers)
    check_dimensions(PictureHeader("png", *canvas.size), COMPOSITE_LIMITS)
    if output == "jpeg" and canvas.mode == "RGBA":
        raise invalid_option("output", output, "png or webp, since the result is transparent in places")
    if match_colour and not is_picture:
        raise invalid_option("match_colour", match_colour, "0, unless the cut-outs go onto another picture")
    placed, frames = [], []
    for layer, each in zip(layers, places, strict=True):
        mapping, frame = Mapping(), (0, 0, 0, 0)
        if layer.box is not None:
            group = around(visible) if together else layer.box
            mapping = mapping_for(group, source_wh, canvas.size, each, source)
            frame = whole(mapping.box(layer.box, source_wh))
        placed.append((layer, mapping))
        frames.append(frame)
    colours = None
    if match_colour and visible:
        part = _surroundings([frame for frame in frames if any(frame)], canvas.size)
        if part is not None:
            own = [samples(layer.image()) for layer, _ in placed]
            colours = matching(own, samples(canvas.crop(part)), match_colour)
    for layer, mapping in placed:
        draw(canvas, layer, mapping, source_wh, colours)
    buffer = io.BytesIO()
    canvas.save(buffer, output.upper(), **_SAVING[output], **({} if output == "png" else {"quality": quality}))
    return CompositeResult(buffer.getvalue(), MEDIA_TYPES[output], canvas.width, canvas.height, tuple(frames), cut)


def _surroundings(frames: Sequence[Frame], canvas_wh: SizeWH) -> Frame | None:
    """The background around the cut-outs."""
    x1, y1, x2, y2 = around(frames)
    reach_x, reach_y = SURROUNDINGS * (x2 - x1), SURROUNDINGS * (y2 - y1)
    x1, y1, x2, y2 = whole((x1 - reach_x, y1 - reach_y, x2 + reach_x, y2 + reach_y))
    part = max(0, x1), max(0, y1), min(canvas_wh[0], x2), min(canvas_wh[1], y2)
    return part if part[0] < part[2] and part[1] < part[3] else None


def mapping_for(
    box: Box, source_wh: SizeWH, canvas_wh: SizeWH, place: Placement, as_background: Mapping | None = None
) -> Mapping:
    """The mapping of a group of cut-outs onto a canvas.

    Args:
        box: around their visible pixels, in the source picture.
        source_wh, canvas_wh: width and height of the source picture and the canvas.
        place: the caller's placement.
        as_background: the mapping of the source picture onto the canvas, where it is the background.
    """
    start = as_background or (
        Mapping() if source_wh == canvas_wh else _elsewhere(box, source_wh, canvas_wh, place.flip)
    )
    x1, y1, x2, y2 = start.box(box, source_wh)
    width, height, scale = x2 - x1, y2 - y1, start.scale
    if place.scale is not None:
        grown = place.scale * canvas_wh[1] / height
        x1, y1 = (x1 + x2 - width * grown) / 2, y2 - height * grown  # the ground stays where it is
        width, height, scale = width * grown, height * grown, scale * grown
    if place.anchor is not None:
        x1 = _aligned(place.anchor, "left", "right", canvas_wh[0] - width)
        y1 = _aligned(place.anchor, "top", "bottom", canvas_wh[1] - height)
    left, top, _, _ = mirrored(box, source_wh[0]) if place.flip else box
    dx, dy = x1 + place.offset_px[0] - scale * left, y1 + place.offset_px[1] - scale * top
    if scale == 1.0:  # whole pixels, so that nothing is resampled
        dx, dy = float(round(dx)), float(round(dy))
    return Mapping(scale, dx, dy, place.flip)


def _elsewhere(box: Box, source_wh: SizeWH, canvas_wh: SizeWH, flip: bool) -> Mapping:
    """Onto a canvas of another size: height and distance from the bottom keep their share of the canvas; not wider than
    it; and flush with an edge that cut them off."""
    (width, height), (canvas_width, canvas_height) = source_wh, canvas_wh
    x1, y1, x2, y2 = box
    scale = min(canvas_height / height, canvas_width / (x2 - x1))
    spare = canvas_width - scale * (x2 - x1)
    left = min(max((x1 + x2) / 2 / width * canvas_width - scale * (x2 - x1) / 2, 0.0), spare)
    if (x1 <= 0) != (x2 >= width):
        left = 0.0 if (x1 <= 0) != flip else spare
    top = 0.0 if y1 <= 0 and y2 < height else y2 / height * canvas_height - scale * (y2 - y1)
    return Mapping(scale, left - scale * x1, top - scale * y1)


def _aligned(anchor: str, start: str, end: str, spare: float) -> float:
    return 0.0 if start in anchor else spare if end in anchor else spare / 2


def _canvas(
    onto: Onto, original: bytes, source_wh: SizeWH, size_wh: SizeWH | None, layers: Sequence[Layer]
) -> tuple[PILImage, Mapping | None, bool]:
    """The background, RGB, or RGBA where it is transparent; the source picture's mapping onto it, where it is the
    background; and whether it is another picture, to which colours may be matched."""
    from PIL import Image, ImageChops

    if isinstance(onto, str) and (onto == "transparent" or onto.startswith(("#", "blur:"))):
        background = parse_options({"background": onto}).background
        if background.blur_px is None:
            return flat(size_wh or source_wh, onto), None, False
        onto = Blur(background.blur_px)
    if not isinstance(onto, Blur):
        picture = onto if isinstance(onto, Picture) else Picture(onto)
        image = decode_input(picture.image)
        return fitted(image, size_wh or image.size, picture.fit, picture.fill), None, True
    image = decode_upright(original, check_picture(original))
    if image.size != source_wh:
        raise invalid_option("original", f"{image.width}×{image.height} pixels", "the picture that was cut")
    if image.mode == "RGBA":
        opaque = Image.new("RGB", image.size, (128, 128, 128))  # as for the server's models
        opaque.paste(image, (0, 0), image)
        image = opaque
    alpha = Image.new("L", image.size, 0)
    for layer in layers:
        frame = layer.cutout.frame
        alpha.paste(ImageChops.lighter(alpha.crop(frame), layer.image().getchannel("A")), frame[:2])
    width, height = size_wh or source_wh
    scale = max(width / source_wh[0], height / source_wh[1])
    source = Mapping(scale, (width - scale * source_wh[0]) / 2, (height - scale * source_wh[1]) / 2)
    return blurred(fitted(filled(image, alpha), (width, height), "cover", ""), onto.px), source, False


def check_size(size_px: object) -> SizeWH | None:
    if size_px is None:
        return None
    parts: Any = size_px if isinstance(size_px, (tuple, list)) and len(size_px) == 2 else (None, None)
    if not all(isinstance(part, int) and _is_number(part, 1, math.inf) for part in parts):
        raise invalid_option("size_px", size_px, "a width and a height in whole pixels")
    check_dimensions(PictureHeader("png", *parts), COMPOSITE_LIMITS)
    return parts[0], parts[1]


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
