"""Cut-outs onto something else: a colour, another picture, or the blurred original.

    result = client.composite("photo.jpg", "beach.jpg", place=Placement(anchor="bottom", scale=0.8), match_colour=0.5)
    result.save("at-the-beach.png")

Everything here is computed on the caller's machine from what :meth:`cutaway.Client.cut` returned; the parts stand in
:mod:`cutaway.compositing`. Colours are mixed in sRGB, as the server does.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutaway.compositing.backgrounds import Blur, Onto, Picture, Scene, check_size, scene_of
from cutaway.compositing.colour import matching, samples
from cutaway.compositing.layers import Layer, draw, layers_of
from cutaway.compositing.placing import Mapping, Placement, SizeWH, around, mapping_for
from cutaway.compositing.shadow import cast
from cutaway.contract.errors import invalid_option
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.limits import COMPOSITE_LIMITS, COMPOSITE_OUTPUTS, COMPOSITE_QUALITY, MEDIA_TYPES
from cutaway.decode import decode_upright
from cutaway.report import Frame

if TYPE_CHECKING:
    import os

    from PIL.Image import Image as PILImage
    from PIL.ImageFilter import Color3DLUT

    from cutaway.result import CutResult

__all__ = ["Blur", "CompositeResult", "Onto", "Picture", "Placement", "compose"]

_EXTENSIONS = {"png": (".png",), "webp": (".webp",), "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif")}

_SURROUNDINGS = 0.5
"""Colours are matched to what is around the place of the cut-outs: their box, grown on each side by this share."""


@dataclass(frozen=True, eq=False)
class CompositeResult:
    """A finished picture.

    Attributes:
        data: the encoded file.
        media_type: "image/png", "image/webp" or "image/jpeg".
        width_px, height_px: its size.
        frames: x1, y1, x2, y2 around what is visible of each cut-out, in order, in pixels of the result; beyond its
            edges where a cut-out is, and without area where nothing of it is visible.
        cut: the cut-outs, and who made them, how long it took and with which warnings.
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
        return self.media_type.removeprefix("image/")

    def pil(self) -> PILImage:
        """The picture as a PIL image: RGB, or RGBA where it may be transparent."""
        from PIL import Image

        image = Image.open(io.BytesIO(self.data), formats=[self.format.upper()])
        image.load()
        return image

    def numpy(self) -> NDArray[np.uint8]:
        """The picture as an array: HWC uint8 [0, 255], RGB or RGBA."""
        return np.array(self.pil(), dtype=np.uint8)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write the encoded file as it is.

        Raises:
            ValueError: the name's extension says another format.
            FileExistsError: the file is there and `overwrite` is False.
        """
        path = Path(path)
        extensions = _EXTENSIONS[self.format]
        if path.suffix.lower() not in extensions:
            raise ValueError(
                f"the picture is a {self.format.upper()}: name it {path.stem}{extensions[0]}, not {path.name}"
            )
        with path.open("wb" if overwrite else "xb") as file:
            file.write(self.data)
        return path

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        if self.format == "png":
            return self.data
        buffer = io.BytesIO()
        self.pil().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def compose(
    cut: CutResult,
    original: bytes,
    onto: Onto,
    *,
    place: Placement | Sequence[Placement] | None = None,
    match_colour: float = 0.0,
    shadow: float = 0.0,
    output: str = "png",
    quality: int = COMPOSITE_QUALITY,
    size_px: tuple[int, int] | None = None,
) -> CompositeResult:
    """Put the cut-outs of a result onto something else.

    Args:
        cut: cut-outs on transparent, decontaminated best: soft edges keep the old background's colour otherwise.
        original: the file that they were cut from.
        onto: what goes behind, see :data:`Onto`.
        place: where and how large: one for all cut-outs together, or one for each. None keeps them where they were,
            see :class:`Placement`.
        match_colour: how far colours go towards those around their new place, 0 to 1; only onto another picture. See
            :mod:`cutaway.compositing.colour`.
        shadow: strength of a soft shadow where feet touch the ground, 0 to 1. People whom the lower edge of the
            original cuts off have no feet and get none.
        output: "png", "webp" or "jpeg", which cannot be transparent.
        quality: of a WebP or JPEG, 1 to 100.
        size_px: width and height of the result. Otherwise those of the picture behind, or of the original.

    Raises:
        InvalidOption: an argument is out of bounds; a colour match where there is no other picture; a transparent JPEG.
        OSError, TypeError, InputError: the picture behind, see :func:`cutaway.inputs.encode`.
        InferenceError: the cut-outs contradict their report.
    """
    size_wh = check_size(size_px)
    _check_numbers(match_colour, shadow, output, quality)
    source_wh = (cut.report.width_px, cut.report.height_px)
    places = _places(place, len(cut.cutouts))
    layers = layers_of(cut.cutouts)
    scene = scene_of(onto, lambda: _source(original, source_wh), source_wh, size_wh, layers)
    canvas = scene.canvas
    check_dimensions(PictureHeader("png", *canvas.size), COMPOSITE_LIMITS)
    if output == "jpeg" and canvas.mode == "RGBA":
        raise invalid_option("output", output, "png or webp, since the result is transparent in places")
    if match_colour and not scene.is_picture:
        raise invalid_option("match_colour", match_colour, "0, unless the cut-outs go onto another picture")

    mappings = _mappings(layers, source_wh, scene, places)
    boxes = [
        None if layer.box is None else mapping.box(layer.box, source_wh)
        for layer, mapping in zip(layers, mappings, strict=True)
    ]
    visible = [box for box in boxes if box is not None]
    colours = _matched(layers, visible, canvas, match_colour) if match_colour and visible else None
    if shadow:
        for layer, mapping in zip(layers, mappings, strict=True):
            cast(canvas, layer, mapping, source_wh, shadow)
    for layer, mapping in zip(layers, mappings, strict=True):
        draw(canvas, layer, mapping, source_wh, colours)
    return CompositeResult(
        _encoded(canvas, output, quality),
        MEDIA_TYPES[output],
        canvas.width,
        canvas.height,
        tuple((0, 0, 0, 0) if box is None else _whole(box) for box in boxes),
        cut,
    )


def _check_numbers(match_colour: float, shadow: float, output: str, quality: int) -> None:
    for name, share in (("match_colour", match_colour), ("shadow", shadow)):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise invalid_option(name, share, "0 to 1")
    if output not in COMPOSITE_OUTPUTS:
        raise invalid_option("output", output, ", ".join(COMPOSITE_OUTPUTS))
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise invalid_option("quality", quality, "1 to 100")


def _places(place: Placement | Sequence[Placement] | None, cutouts: int) -> Placement | list[Placement]:
    if place is None or isinstance(place, Placement):
        return place or Placement()
    places = list(place)
    if len(places) != cutouts or not all(isinstance(each, Placement) for each in places):
        raise invalid_option("place", f"{len(places)} placements", f"one, or as many as cut-outs: {cutouts}")
    return places


def _source(original: bytes, source_wh: SizeWH) -> PILImage:
    image = decode_upright(original, check_picture(original))
    if image.size != source_wh:
        raise invalid_option("original", f"{image.width}×{image.height} pixels", "the picture that was cut")
    return image


def _mappings(
    layers: Sequence[Layer], source_wh: SizeWH, scene: Scene, places: Placement | list[Placement]
) -> list[Mapping]:
    """How each layer comes onto the canvas; one that shows nothing goes nowhere in particular."""
    visible = [layer.box for layer in layers if layer.box is not None]
    if isinstance(places, Placement):
        if not visible:
            return [Mapping()] * len(layers)
        return [mapping_for(around(visible), source_wh, scene.canvas.size, places, scene.source)] * len(layers)
    return [
        Mapping() if layer.box is None else mapping_for(layer.box, source_wh, scene.canvas.size, place, scene.source)
        for layer, place in zip(layers, places, strict=True)
    ]


def _matched(
    layers: Sequence[Layer], boxes: Sequence[tuple[float, float, float, float]], canvas: PILImage, strength: float
) -> Color3DLUT | None:
    x1, y1, x2, y2 = around(boxes)
    reach_x, reach_y = _SURROUNDINGS * (x2 - x1), _SURROUNDINGS * (y2 - y1)
    x1, y1, x2, y2 = _whole((x1 - reach_x, y1 - reach_y, x2 + reach_x, y2 + reach_y))
    part = max(0, x1), max(0, y1), min(canvas.width, x2), min(canvas.height, y2)
    if part[0] >= part[2] or part[1] >= part[3]:
        return None
    return matching([samples(layer.image()) for layer in layers], samples(canvas.crop(part)), strength)


def _whole(box: tuple[float, float, float, float]) -> Frame:
    return round(box[0]), round(box[1]), round(box[2]), round(box[3])


def _encoded(canvas: PILImage, output: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    if output == "jpeg":
        canvas.save(buffer, "JPEG", quality=quality, subsampling=0)
    elif output == "webp":
        canvas.save(buffer, "WEBP", quality=quality, method=2)
    else:
        canvas.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
