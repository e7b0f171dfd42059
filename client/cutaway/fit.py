"""A picture over the limits: a smaller copy is sent, and the alpha that comes back is put onto the original.

fitted = shrink("48-megapixels.jpg")
... send fitted.picture with fitted.options(given) ...
result = fitted.restore(result, parse_options(given))
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from cutaway.contract.errors import FileTooLarge, InputError, ResolutionTooLarge, TooManyPixels
from cutaway.contract.limits import FIT_LIMITS, INPUT_LIMITS, InputLimits, Tier
from cutaway.contract.options import CutOptions, parse_options
from cutaway.decode import decode_upright, plain
from cutaway.drawing import filled
from cutaway.inputs import EncodedPicture, encode, encode_lossy, is_pixels, pil_of, read_encoded
from cutaway.report import Box, Frame, Notice
from cutaway.result import Cutout, CutResult, Detection

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from cutaway.inputs import ImageInput

ResultT = TypeVar("ResultT", CutResult, Detection)

SMALLER = 0.7
"""Next scale of a copy that is over the limit of bytes even at the lowest quality: half the pixels."""

SOFT_GAIN = 6
"""From alpha 255 down to 212 colours are blended from the original's to the server's, which are decontaminated."""

WEBP_MAX_SIDE_PX = 16_383
_HALF_A_THOUSANDTH_PX = 5e-4


def shrink(
    image: ImageInput | EncodedPicture,
    *,
    media_type: str | None = None,
    limits: InputLimits = INPUT_LIMITS,
    verify: bool = False,
    strict: bool = False,
) -> Fitted:
    """As :func:`cutaway.inputs.encode`, but of a picture with too many pixels or bytes a smaller copy is encoded.

    Raises:
        OSError, TypeError, InputError: see there; the sizes that are refused are those of `limits.FIT_LIMITS`.
    """
    if not is_pixels(image) and not isinstance(image, EncodedPicture):
        image, declared = read_encoded(image, FIT_LIMITS.max_file_bytes)
        media_type = media_type or declared
    try:
        return Fitted(encode(image, media_type=media_type, limits=limits, verify=verify, strict=strict))
    except (FileTooLarge, ResolutionTooLarge, TooManyPixels) as error:
        refusal: InputError = error
    bounds = replace(FIT_LIMITS, max_decompression_ratio=limits.max_decompression_ratio)
    warnings: tuple[Notice, ...] = ()
    if is_pixels(image):
        original = plain(pil_of(image, bounds))
    else:
        picture = encode(image, media_type=media_type, limits=bounds, strict=strict)
        original, warnings = decode_upright(picture.data, picture.header), picture.warnings
    copy = _copy(original, limits, refusal)
    sent, size = (f"{width}×{height}" for width, height in (_size(copy), original.size))
    message = (
        f"The picture of {size} pixels is over the limits and was sent as a copy of {sent}: edges are as fine as that."
    )
    notice = Notice("FITTED", message, Tier.MEDIUM, {"original_px": list(original.size), "sent_px": list(_size(copy))})
    return Fitted(replace(copy, warnings=(*warnings, notice)), original)


def _copy(original: PILImage, limits: InputLimits, refusal: InputError) -> EncodedPicture:
    from PIL import Image

    long, short = max(original.size), min(original.size)
    scale = min(1, limits.max_long_side_px / long, limits.max_short_side_px / short)
    scale = min(scale, math.sqrt(limits.max_pixels / (long * short)))
    while int(short * scale) >= limits.min_side_px:
        size = int(original.width * scale), int(original.height * scale)
        try:
            return encode_lossy(original.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), limits)
        except FileTooLarge:
            scale *= SMALLER
    raise refusal


def _size(picture: EncodedPicture) -> tuple[int, int]:
    return picture.header.width_px, picture.header.height_px


@dataclass(frozen=True, eq=False)
class Fitted:
    """The file that is sent, and the original to restore.

    Attributes:
        picture: the encoded file; its warnings are for the result.
        original: RGB or RGBA, upright, in sRGB; None where the picture is sent as it is.
    """

    picture: EncodedPicture
    original: PILImage | None = None

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Pixels of the original by pixels of the copy, across and down; at least 1."""
        if self.original is None:
            return 1.0, 1.0
        width, height = _size(self.picture)
        return self.original.width / width, self.original.height / height

    def options(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options to send for the copy: lengths in its pixels, and no background, which restoring adds.

        Raises:
            InvalidOption: an option is refused.
        """
        if self.original is None:
            return given
        checked, (across, down) = parse_options(given), self.scale_xy
        scaled = {**given, "padding_px": round(checked.padding_px / across)}
        scaled["feather_px"] = math.ceil(checked.feather_px / across)
        if checked.boxes is not None:
            scaled["boxes"] = [[x1 / across, y1 / down, x2 / across, y2 / down] for x1, y1, x2, y2 in checked.boxes]
        return scaled | {"background": "transparent"}

    def restore(self, result: ResultT, options: CutOptions) -> ResultT:
        """The answer for the copy as one for the original: full-size cut-outs, boxes and frames in its pixels. The
        report's `raw` stays as the server sent it.

        Args:
            result: a cut or a detection.
            options: the caller's, in pixels of the original.

        Raises:
            InferenceError: a cut-out cannot be decoded.
        """
        if self.original is None:
            return result
        cutouts = tuple(self._cutout(cutout, options) for cutout in getattr(result, "cutouts", ()))
        report = result.report
        report = replace(
            report,
            width_px=self.original.width,
            height_px=self.original.height,
            people=tuple(replace(person, box=self._box(person.box)) for person in report.people),
            cutouts=tuple(
                replace(entry, box=cutout.box, frame=cutout.frame, file_bytes=len(cutout.image))
                for entry, cutout in zip(report.cutouts, cutouts, strict=False)
            ),
        )
        boxes = (result.boxes * np.array(2 * self.scale_xy)).astype(np.float32)
        changed: dict[str, Any] = {"cutouts": cutouts} if isinstance(result, CutResult) else {}
        return replace(result, boxes=boxes, report=report, **changed)

    def _box(self, box: Box) -> Box:
        across, down = self.scale_xy
        return box[0] * across, box[1] * down, box[2] * across, box[3] * down

    def _cutout(self, cutout: Cutout, options: CutOptions) -> Cutout:
        from PIL import Image, ImageFilter

        assert self.original is not None
        (x1, x2), (left, right) = _span(cutout.frame[0], cutout.frame[2], self.scale_xy[0])
        (y1, y2), (top, bottom) = _span(cutout.frame[1], cutout.frame[3], self.scale_xy[1])
        frame: Frame = (x1, y1, x2, y2)
        size = x2 - x1, y2 - y1

        def enlarged(image: PILImage) -> PILImage:
            # A kernel without negative lobes: one with them draws rims. Pillow weights the colours of RGBA by alpha.
            return image.resize(size, Image.Resampling.HAMMING, box=(left, top, right, bottom))

        small = cutout.pil().convert("L" if options.output == "mask" else "RGBA")
        image = enlarged(small)
        if options.output != "mask":
            # Colours are the original's a pixel of the copy away from where alpha is soft: next to that they are mixed.
            solid = enlarged(small.getchannel("A").filter(ImageFilter.MinFilter(3)))
            image = self._rendered(image, solid, frame, options)
        form: Literal["png", "webp"] = "webp" if options.output == "webp" and max(size) <= WEBP_MAX_SIDE_PX else "png"
        file, webp = io.BytesIO(), {"quality": 90, "method": 2}
        image.save(file, form.upper(), **(webp if form == "webp" else {"compress_level": 1}))
        return replace(cutout, box=self._box(cutout.box), frame=frame, image=file.getvalue(), format=form)

    def _rendered(self, large: PILImage, solid: PILImage, frame: Frame, options: CutOptions) -> PILImage:
        """The original's pixels with the alpha of an enlarged cut-out, and with its colours where it is not solid."""
        from PIL import Image, ImageFilter

        assert self.original is not None
        # Not `crop`, which applies Pillow's own bound of pixels.
        own = self.original.convert("RGB").resize(large.size, Image.Resampling.NEAREST, box=frame)
        alpha, image = large.getchannel("A"), own.copy()
        if options.decontaminate:
            image.paste(large.convert("RGB"), (0, 0), solid.point(lambda value: min(255, (255 - value) * SOFT_GAIN)))
        background = options.background
        if background.transparent:
            image.putalpha(alpha)
            return image
        if background.colour_rgb is not None:
            behind = Image.new("RGB", large.size, background.colour_rgb)
        else:
            behind = filled(own, alpha).filter(ImageFilter.GaussianBlur(background.blur_px or 0))
        behind.paste(image, (0, 0), alpha)
        return behind


def _span(start: int, end: int, scale: float) -> tuple[tuple[int, int], tuple[float, float]]:
    """Whole pixels of the original within `start` to `end` of the copy, and where they lie, seen from `start`."""
    first = math.ceil(start * scale - _HALF_A_THOUSANDTH_PX)
    last = max(math.floor(end * scale + _HALF_A_THOUSANDTH_PX), first + 1)
    length = float(end - start)
    return (first, last), (max(first / scale - start, 0.0), min(last / scale - start, length))
