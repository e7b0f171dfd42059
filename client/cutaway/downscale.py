"""A picture over the limits: a smaller copy is sent, and the alpha that comes back is put onto the original."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
from PIL import Image, ImageFilter

from cutaway import inputs
from cutaway.contract.errors import FileTooLarge, InputError, ResolutionTooLarge, TooManyPixels
from cutaway.contract.limits import FIT_LIMITS, INPUT_LIMITS, InputLimits, Tier
from cutaway.contract.options import CutOptions, parse_options
from cutaway.drawing import encode_cutout, fill_people, round_box
from cutaway.inputs import EncodedPicture, ImageInput
from cutaway.report import Box, Notice
from cutaway.result import Cutout, CutResult, Detection

ResultT = TypeVar("ResultT", CutResult, Detection)

SMALLER = 0.7  # next scale of a copy that is over the limit of bytes even at the lowest quality: half the pixels
SOFT_GAIN = 6  # from alpha 255 down to 212 colours go from the original's to the server's, which are decontaminated


def downscale(
    image: ImageInput, *, media_type: str | None = None, limits: InputLimits = INPUT_LIMITS, strict: bool = False
) -> Fitted:
    """As :func:`cutaway.inputs.encode`, but a smaller copy of a picture over the limits, up to `limits.FIT_LIMITS`."""
    if not inputs.is_pixels(image):
        image, declared = inputs.read_encoded(image, FIT_LIMITS.max_file_bytes)
        media_type = media_type or declared
    try:
        return Fitted(inputs.encode(image, media_type=media_type, limits=limits, strict=strict))
    except (FileTooLarge, ResolutionTooLarge, TooManyPixels) as error:
        refusal: InputError = error
    bounds = replace(FIT_LIMITS, max_decompression_ratio=limits.max_decompression_ratio)
    warnings: tuple[Notice, ...] = ()
    if inputs.is_pixels(image):
        original = inputs.to_srgb(inputs.pil_of(image, bounds))
    else:
        picture = inputs.encode(image, media_type=media_type, limits=bounds, strict=strict)
        original, warnings = inputs.decode_upright(picture.data, picture.header), picture.warnings
    copy = _copy(original, limits, refusal)
    sizes = {"original_px": list(original.size), "sent_px": [copy.header.width_px, copy.header.height_px]}
    message = "The picture is over the limits and was sent as a smaller copy: edges are as fine as that."
    notice = Notice("FITTED", message, Tier.MEDIUM, sizes)
    return Fitted(replace(copy, warnings=(*warnings, notice)), original)


def _copy(original: Image.Image, limits: InputLimits, refusal: InputError) -> EncodedPicture:
    long, short = max(original.size), min(original.size)
    scale = min(1, limits.max_long_side_px / long, limits.max_short_side_px / short)
    scale = min(scale, math.sqrt(limits.max_pixels / (long * short)))
    while int(short * scale) >= limits.min_side_px:
        size = int(original.width * scale), int(original.height * scale)
        try:
            return inputs.encode_lossy(original.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0), limits)
        except FileTooLarge:
            scale *= SMALLER
    raise refusal


@dataclass(frozen=True, eq=False)
class Fitted:
    """The file that is sent, whose warnings are for the result, and the original to restore: RGB or RGBA, upright, in
    sRGB; None where the picture is sent as it is."""

    picture: EncodedPicture
    original: Image.Image | None = None

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Pixels of the original by pixels of the copy, across and down; at least 1."""
        assert self.original is not None
        header = self.picture.header
        return self.original.width / header.width_px, self.original.height / header.height_px

    def options(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options to send for the copy, or InvalidOption: lengths in its pixels; background, form and size are left
        to restoring."""
        if self.original is None:
            return given
        checked, (across, down) = parse_options(given), self.scale_xy
        scaled = {**given, "padding_px": round(checked.padding_px / across)}
        scaled["feather_px"] = math.ceil(checked.feather_px / across)
        scaled |= {"crop_margin_px": round(checked.crop_margin_px / across)} if checked.crop_margin_px else {}
        if checked.boxes is not None:
            scaled["boxes"] = [[x1 / across, y1 / down, x2 / across, y2 / down] for x1, y1, x2, y2 in checked.boxes]
        if checked.output in ("jpeg", "layers"):
            scaled["output"] = "png"
        scaled.pop("max_side_px", None)
        return scaled | {"background": "transparent"}

    def restore(self, result: ResultT, options: CutOptions) -> ResultT:
        """The answer for the copy as one for the original, with the caller's `options`; the report's `raw` stays.
        InferenceError where a cut-out cannot be decoded."""
        if self.original is None:
            return result
        made = [self._cutout(cutout, options) for cutout in getattr(result, "cutouts", ())]
        cutouts = tuple(cutout for cutout, _ in made)
        people = tuple(replace(person, box=self._box(person.box)) for person in result.report.people)
        entries = tuple(
            replace(entry, box=cutout.box, frame=cutout.frame, size=size, file_bytes=len(cutout.image))
            for entry, (cutout, size) in zip(result.report.cutouts, made, strict=False)
        )
        width, height = self.original.size
        report = replace(result.report, width_px=width, height_px=height, people=people, cutouts=entries)
        boxes = (result.boxes * np.array(2 * self.scale_xy)).astype(np.float32)
        changed: dict[str, Any] = {"cutouts": cutouts} if isinstance(result, CutResult) else {}
        return replace(result, boxes=boxes, report=report, **changed)

    def _box(self, box: Box) -> Box:
        across, down = self.scale_xy
        return box[0] * across, box[1] * down, box[2] * across, box[3] * down

    def _cutout(self, cutout: Cutout, options: CutOptions) -> tuple[Cutout, tuple[int, int]]:
        assert self.original is not None
        frame = round_box(self._box(cutout.frame))
        size = frame[2] - frame[0], frame[3] - frame[1]
        # A kernel without negative lobes: one with them draws rims. Pillow weights the colours of RGBA by alpha.
        small, kernel = cutout.pil().convert("L" if options.output == "mask" else "RGBA"), Image.Resampling.HAMMING
        image = small.resize(size, kernel)
        if options.output != "mask":
            large, alpha = image, image.getchannel("A")
            # Not `crop`, which applies Pillow's own bound of pixels.
            own = self.original.convert("RGB").resize(size, Image.Resampling.NEAREST, box=frame)
            image = own.copy()
            if options.decontaminate:
                # Colours are the original's a pixel of the copy away from soft alpha, beside which they are mixed.
                solid = small.getchannel("A").filter(ImageFilter.MinFilter(3)).resize(size, kernel)
                soft = solid.point(lambda value: min(255, (255 - value) * SOFT_GAIN))
                image.paste(large.convert("RGB"), (0, 0), soft)
            background = options.background
            if background.transparent:
                image.putalpha(alpha)
            elif background.colour_rgb is not None:
                image = Image.composite(image, Image.new("RGB", size, background.colour_rgb), alpha)
            else:
                behind = fill_people(own, alpha).filter(ImageFilter.GaussianBlur(background.blur_px or 0))
                image = Image.composite(image, behind, alpha)
        file, form, size = encode_cutout(image, options)
        return replace(cutout, box=self._box(cutout.box), frame=frame, image=file, format=cast(Any, form)), size
