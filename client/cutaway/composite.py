"""Cut-outs onto something else: a colour, another picture, or the blurred original.

    result = client.composite("photo.jpg", "beach.jpg", place=Placement(anchor="bottom", scale=0.8), match_colour=0.5)
    result.save("at-the-beach.png")

Colours are mixed in sRGB, as on the server. Boxes are (x1, y1, x2, y2) in pixels, right and lower edges not included.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

from cutaway import drawing
from cutaway.colour_match import histogram_of, match_colours
from cutaway.contract import limits
from cutaway.contract.errors import invalid_option
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.options import parse_options
from cutaway.drawing import SizeWH, Transform, clip_frame, enclose, rgba_of, round_box
from cutaway.inputs import ImageInput, decode_input, decode_upright
from cutaway.report import Box, Frame
from cutaway.result import EncodedResult

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from cutaway.result import CutResult

__all__ = ["ANCHORS", "Blur", "CompositeResult", "Onto", "Picture", "Placement", "compose"]

ANCHORS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
SURROUNDINGS = 0.5  # margin on each side of the cut-outs' box whose colours are matched
_SAVING: dict[str, dict[str, Any]] = {"jpeg": {"subsampling": 0}, "webp": {"method": 2}, "png": {"compress_level": 1}}


def _check(name: str, value: object, allowed: str, valid: bool) -> None:
    if not valid:
        raise invalid_option(name, value, allowed)


def _is_number(value: object, least: float, most: float, *kinds: type) -> bool:
    return type(value) in (kinds or (int, float)) and least <= value <= most  # type: ignore[operator]


def _is_pair(value: object, least: float, most: float) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(_is_number(n, least, most, int) for n in value)


@dataclass(frozen=True)
class Placement:
    """Position and size of cut-outs, or InvalidOption. Several are placed as a group, with their distances kept.

    Attributes:
        anchor: corner, edge ("bottom": its middle) or "center" of the canvas for their box. None keeps their position;
            on a canvas of another shape height and distance from the bottom keep their share of the canvas, and a side
            that an edge of the picture cut off stays at that edge.
        scale: height of their box as a share of the canvas' height, 0.01 to 4. None keeps the size described above.
        offset_px: shift to the right and down, in pixels of the canvas.
    """

    anchor: str | None = None
    scale: float | None = None
    offset_px: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        (least, most), reach = limits.COMPOSITE_SCALE, limits.COMPOSITE_LIMITS.max_long_side_px
        _check("anchor", self.anchor, ", ".join(ANCHORS), self.anchor in (None, *ANCHORS))
        valid = self.scale is None or _is_number(self.scale, least, most)
        _check("scale", self.scale, f"{least:g} to {most:g}", valid)
        allowed = f"two whole numbers from {-reach} to {reach}"
        _check("offset_px", self.offset_px, allowed, _is_pair(self.offset_px, -reach, reach))


@dataclass(frozen=True)
class Blur:
    """The original, blurred, without the people that were cut out: `px` is the Gaussian's standard deviation in pixels
    of the result, a whole number from 1 to 100, or InvalidOption is raised."""

    px: int = 20

    def __post_init__(self) -> None:
        parse_options({"background": f"blur:{self.px}"})


@dataclass(frozen=True)
class Picture:
    """Another picture, as for :meth:`cutaway.Client.cut` and with the same limits; what is transparent stays so. For a
    result of another size "cover" fills it and crops, "contain" shows all, with margins of the colour `fill` ("#RRGGBB"
    or "transparent"), and "stretch" fills it and distorts. Another `fit` or `fill` is InvalidOption."""

    image: ImageInput = field(repr=False)
    fit: Literal["cover", "contain", "stretch"] = "cover"
    fill: str = "#FFFFFF"

    def __post_init__(self) -> None:
        _check("fit", self.fit, "cover, contain, stretch", self.fit in ("cover", "contain", "stretch"))
        valid = bool(re.fullmatch("transparent|#[0-9a-fA-F]{6}", self.fill))
        _check("fill", self.fill, "transparent, #RRGGBB", valid)


Onto: TypeAlias = str | Blur | Picture | ImageInput
"""A composite's background: "transparent", "#RRGGBB", "blur:<px>", :class:`Blur`, :class:`Picture`, or any picture as
the client takes it (a path, bytes, a PIL image, …), which covers the result."""


@dataclass(frozen=True, eq=False)
class CompositeResult(EncodedResult):
    """A finished picture. `frames` are x1, y1, x2, y2 around what is visible of each cut-out, in order, in pixels of
    the result; without area where nothing is. `cut` is the result of the cut."""

    data: bytes = field(repr=False)
    media_type: str
    width_px: int
    height_px: int
    frames: tuple[Frame, ...]
    cut: CutResult | None = field(default=None, repr=False)


def compose(
    cut: CutResult,
    original: bytes,
    onto: Onto,
    *,
    place: Placement | Sequence[Placement] | None = None,
    match_colour: float = 0.0,
    output: str = "png",
    quality: int = limits.COMPOSITE_QUALITY,
    size_px: tuple[int, int] | None = None,
) -> CompositeResult:
    """Put the cut-outs of a result onto something else.

    Args:
        cut: cut-outs on transparent; `original` is the file that they were cut from, which only a blur needs.
        place: one for all cut-outs together, or one for each; None keeps them where they were.
        match_colour: strength of the colour match with the surroundings, 0 to 1; only onto another picture.
        output: "png", "webp" or "jpeg", which cannot be transparent; `quality` of the latter two is 1 to 100.
        size_px: width and height of the result; else those of the picture behind, or of the original.

    Raises:
        InvalidOption: an argument is out of bounds, or makes no sense with another one.
        OSError, TypeError, InputError: the picture behind, see :func:`cutaway.inputs.encode`.
        InferenceError: the cut-outs contradict their report.
    """
    _check("match_colour", match_colour, "0 to 1", _is_number(match_colour, 0, 1))
    _check("output", output, ", ".join(limits.COMPOSITE_OUTPUTS), output in limits.COMPOSITE_OUTPUTS)
    _check("quality", quality, "1 to 100", _is_number(quality, 1, 100, int))
    if size_px is not None:
        _check("size_px", size_px, "a width and a height in whole pixels", _is_pair(size_px, 1, math.inf))
        check_dimensions(PictureHeader("png", *size_px), limits.COMPOSITE_LIMITS)
    source_wh = cut.report.width_px, cut.report.height_px
    boxes = [drawing.visible_box(cutout) for cutout in cut.cutouts]
    visible = [box for box in boxes if box is not None]
    together = place is None or isinstance(place, Placement)
    places: list[Any] = [place or Placement()] * len(boxes) if together else list(place)  # type: ignore[arg-type]
    valid = len(places) == len(boxes) and all(isinstance(each, Placement) for each in places)
    _check("place", f"{len(places)} placements", f"one, or as many as cut-outs: {len(boxes)}", valid)
    canvas = _canvas(onto, original, source_wh, size_px, cut)
    _check("output", output, "png or webp: the result is transparent", output != "jpeg" or canvas.mode != "RGBA")
    _check("match_colour", match_colour, "0, unless onto another picture", _is_picture(onto) or not match_colour)
    transforms, frames = [], []
    for box, each in zip(boxes, places, strict=True):
        group = enclose(visible) if together and visible else box
        transforms.append(transform_for(group, source_wh, canvas.size, each) if box and group else Transform())
        frames.append(round_box(transforms[-1].box(box)) if box else (0, 0, 0, 0))
    colours = None
    if match_colour and visible:
        x1, y1, x2, y2 = enclose([frame for frame in frames if any(frame)])
        reach_x, reach_y = SURROUNDINGS * (x2 - x1), SURROUNDINGS * (y2 - y1)
        part = clip_frame(round_box((x1 - reach_x, y1 - reach_y, x2 + reach_x, y2 + reach_y)), canvas.size)
        if part is not None:
            own = [histogram_of(rgba_of(cutout)) for cutout in cut.cutouts]
            colours = match_colours(own, histogram_of(canvas.crop(part)), match_colour)
    for cutout, transform in zip(cut.cutouts, transforms, strict=True):
        drawing.draw(canvas, cutout, transform, colours)
    buffer = io.BytesIO()
    canvas.save(buffer, output.upper(), **_SAVING[output], **({} if output == "png" else {"quality": quality}))
    return CompositeResult(buffer.getvalue(), limits.MEDIA_TYPES[output], *canvas.size, tuple(frames), cut)


def transform_for(box: Box, source_wh: SizeWH, canvas_wh: SizeWH, place: Placement) -> Transform:
    """That of a group of cut-outs, `box` around their visible pixels, onto a canvas."""
    start = Transform() if source_wh == canvas_wh else _elsewhere(box, source_wh, canvas_wh)
    x1, y1, x2, y2 = start.box(box)
    width, height, scale = x2 - x1, y2 - y1, start.scale
    if place.scale is not None:
        grown = place.scale * canvas_wh[1] / height
        x1, y1 = (x1 + x2 - width * grown) / 2, y2 - height * grown  # the ground stays where it is
        width, height, scale = width * grown, height * grown, scale * grown
    if place.anchor is not None:
        x1 = _aligned(place.anchor, "left", "right", canvas_wh[0] - width)
        y1 = _aligned(place.anchor, "top", "bottom", canvas_wh[1] - height)
    dx, dy = x1 + place.offset_px[0] - scale * box[0], y1 + place.offset_px[1] - scale * box[1]
    if scale == 1.0:  # whole pixels, so that nothing is resampled
        dx, dy = float(round(dx)), float(round(dy))
    return Transform(scale, dx, dy)


def _elsewhere(box: Box, source_wh: SizeWH, canvas_wh: SizeWH) -> Transform:
    """Onto a canvas of another size: height and distance from the bottom keep their share of the canvas; not wider than
    it; and flush with an edge that cut them off."""
    (width, height), (canvas_width, canvas_height) = source_wh, canvas_wh
    x1, y1, x2, y2 = box
    scale = min(canvas_height / height, canvas_width / (x2 - x1))
    spare = canvas_width - scale * (x2 - x1)
    left = min(max((x1 + x2) / 2 / width * canvas_width - scale * (x2 - x1) / 2, 0.0), spare)
    if (x1 <= 0) != (x2 >= width):
        left = 0.0 if x1 <= 0 else spare
    top = 0.0 if y1 <= 0 and y2 < height else y2 / height * canvas_height - scale * (y2 - y1)
    return Transform(scale, left - scale * x1, top - scale * y1)


def _aligned(anchor: str, start: str, end: str, spare: float) -> float:
    return 0.0 if start in anchor else spare if end in anchor else spare / 2


def _is_picture(onto: Onto) -> TypeGuard[Picture | ImageInput]:
    is_named = isinstance(onto, str) and (onto == "transparent" or onto.startswith(("#", "blur:")))
    return not is_named and not isinstance(onto, Blur)


def _canvas(onto: Onto, original: bytes, source_wh: SizeWH, size_wh: SizeWH | None, cut: CutResult) -> PILImage:
    """The background, RGB, or RGBA where it is transparent."""
    from PIL import Image, ImageChops, ImageFilter

    if _is_picture(onto):
        picture = onto if isinstance(onto, Picture) else Picture(onto)
        image = decode_input(picture.image)
        return drawing.fit_background(image, size_wh or image.size, picture.fit, picture.fill)
    background = parse_options({"background": f"blur:{onto.px}" if isinstance(onto, Blur) else onto}).background
    if background.blur_px is None:
        mode, colour = ("RGBA", 0) if background.transparent else ("RGB", background.colour_rgb)
        return Image.new(mode, size_wh or source_wh, colour)
    image = decode_upright(original, check_picture(original))
    if image.size != source_wh:
        raise invalid_option("original", f"{image.width}×{image.height} pixels", "the picture that was cut")
    if image.mode == "RGBA":
        opaque = Image.new("RGB", image.size, (128, 128, 128))  # as for the server's models
        opaque.paste(image, (0, 0), image)
        image = opaque
    alpha = Image.new("L", image.size, 0)
    for cutout in cut.cutouts:
        own = rgba_of(cutout).getchannel("A")
        alpha.paste(ImageChops.lighter(alpha.crop(cutout.frame), own), cutout.frame[:2])
    behind = drawing.fit_background(drawing.fill_people(image, alpha), size_wh or source_wh, "cover", "")
    return behind.filter(ImageFilter.GaussianBlur(background.blur_px))
