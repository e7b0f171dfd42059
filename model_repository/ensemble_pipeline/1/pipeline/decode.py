"""An encoded file → an upright 8-bit sRGB picture.

Pillow opens every file: unlike OpenCV it raises on a truncated JPEG, writes nothing to stderr, and reports the colour
profile. libjpeg-turbo decodes an ordinary JPEG directly into the array, with the same bytes as Pillow and without its
copy of the picture; where it fails, Pillow decodes. Other pixels are copied from Pillow in strips, which bounds memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import simplejpeg
from cutaway.contract import png
from cutaway.contract.errors import CorruptImage
from cutaway.contract.headers import PictureHeader, check_picture
from numpy.typing import NDArray
from PIL import Image, ImageCms

from pipeline.geometry import Rect, whole
from pipeline.jpeg import jpeg_fault, judge_fault, readable_jpeg
from pipeline.notices import Notice
from pipeline.samples import density_of, exif_of, to_8_bit
from pipeline.tuning import BEHIND_TRANSPARENCY

ORIENTATION_TAG = 0x0112
PROFILE_DAMAGED = "The colour profile is damaged and was ignored."
STRIP_BYTES = 512 * 1024
"""Pixels are copied out of Pillow in strips of this size: they fit the CPU cache, and no second
whole picture is held."""

_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_PILLOW_FORMATS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright.

    Attributes:
        rgb: (H, W, 3) uint8 sRGB; transparent input is composited onto neutral grey.
        alpha: (H, W) uint8, the input's own transparency, or None where it has none.
        own_rgb: (H, W, 3) uint8, the colours as stored, before compositing; only with `alpha`.
        format: "jpeg", "png", "webp" or "bmp".
        orientation: the EXIF orientation, 1 to 8, that was applied; 1 where there was none.
        notices: warnings for the caller.
        density_dpi: horizontal and vertical pixels per inch, upright; None where the file has none.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    own_rgb: NDArray[np.uint8] | None
    format: str
    orientation: int
    notices: tuple[Notice, ...] = ()
    density_dpi: tuple[float, float] | None = None

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def frame(self) -> Rect:
        return whole(self.width, self.height)


def decode(data: bytes, media_type: str | None = None, max_decompression_ratio: float | None = None) -> Picture:
    """Check, decode and put upright.

    Raises:
        InputError: the header fails a check; CorruptImage where the pixels cannot be decoded.
    """
    header = check_picture(data, media_type, max_decompression_ratio=max_decompression_ratio)
    try:
        return _decode(data, header)
    except (CorruptImage, MemoryError):
        raise
    except Exception as error:
        # Pillow's plugins raise many exceptions on damaged files, from OSError to struct.error. Decompression bombs
        # fail the header's checks before.
        raise CorruptImage(f"The {header.format.upper()} cannot be decoded.") from error


def _decode(data: bytes, header: PictureHeader) -> Picture:
    notices: list[Notice] = []
    if header.format == "png":
        data, profile_dropped = png.readable(data)
        if profile_dropped:
            notices.append(Notice("ICC_PROFILE_IGNORED", PROFILE_DAMAGED))
    elif header.format == "jpeg":
        data, notices = readable_jpeg(data, header)
    with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[header.format]]) as image:
        if image.size != (header.width_px, header.height_px):
            raise CorruptImage("The file's headers disagree about its size.")
        if header.format in ("png", "webp") and getattr(image, "n_frames", 1) > 1:
            notices.append(Notice("FIRST_FRAME_ONLY", "The picture is animated; its first frame was used."))
        alpha = None
        pixels = _coloured_jpeg(data, image, notices) if header.format == "jpeg" else None
        if pixels is None:
            image.load()
            pixels, alpha = _converted(image, data, notices)
        orientation = _orientation(image)
        rgb = upright(pixels, orientation)
        density = density_of(image)
    if alpha is not None:
        alpha = upright(alpha, orientation)
        # Programs leave the fourth byte of a BMP's pixels at 0 and mean nothing by it.
        if int(alpha.min()) == 255 or (header.format == "bmp" and not alpha.any()):
            alpha = None
    own_rgb = None
    if alpha is not None:
        own_rgb, rgb = rgb, _stand_on_grey(rgb, alpha)
    if density is not None and orientation > 4:
        density = density[::-1]
    return Picture(rgb, alpha, own_rgb, header.format, orientation, tuple(notices), density)


def _coloured_jpeg(data: bytes, image: Image.Image, notices: list[Notice]) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8 sRGB of a three-coloured JPEG; None of what is left to Pillow.

    Raises:
        CorruptImage: rows are missing.
    """
    end_is_new = any(notice.code == "END_MARKER_MISSING" for notice in notices)
    if image.format != "JPEG" or image.mode != "RGB":
        if fault := "" if end_is_new else jpeg_fault(data):
            judge_fault(fault, notices)
        return None
    try:
        # Checked before memory is allocated, because a file may hold more than one header.
        if simplejpeg.decode_jpeg_header(data)[:2] != (image.height, image.width):
            return None
        pixels = np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=not end_is_new), np.uint8)
    except ValueError as error:
        judge_fault(str(error), notices)
        return None
    profile = image.info.get("icc_profile")
    if profile:
        plain = Image.fromarray(pixels)
        coloured = _by_profile(plain, bytes(profile), notices)
        return pixels if coloured is plain else _pixels(coloured)
    return pixels


def _converted(
    image: Image.Image, data: bytes, notices: list[Notice]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """A loaded image as (H, W, 3) uint8 sRGB, and its alpha (H, W) uint8 if it has one; appends warnings."""
    profile = image.info.get("icc_profile")
    plain, alpha = to_8_bit(image, data)
    if profile:
        plain = _by_profile(plain, bytes(profile), notices)
    if plain.mode != "RGB":
        plain = plain.convert("RGB")
    return _pixels(plain), alpha


def _orientation(image: Image.Image) -> int:
    """By EXIF alone, as browsers do; Pillow's own reading would turn by XMP, too."""
    try:
        value = exif_of(image).get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block is ignored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(array: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation (1 to 8) to an HW or HWC array; the result is contiguous."""
    # Mirrored, turned by 180°, mirrored upside down; then those on the main and the other diagonal.
    steps: dict[int, tuple[Callable[..., Any], ...]] = {
        2: (lambda a: cv2.flip(a, 1),),
        3: (lambda a: cv2.rotate(a, cv2.ROTATE_180),),
        4: (lambda a: cv2.flip(a, 0),),
        5: (cv2.transpose,),
        6: (lambda a: cv2.rotate(a, cv2.ROTATE_90_CLOCKWISE),),
        7: (cv2.transpose, lambda a: cv2.rotate(a, cv2.ROTATE_180)),
        8: (lambda a: cv2.rotate(a, cv2.ROTATE_90_COUNTERCLOCKWISE),),
    }
    for step in steps.get(orientation, ()):
        array = step(array)
    return array


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of an RGB image."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_BYTES // (3 * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _by_profile(image: Image.Image, profile: bytes, notices: list[Notice]) -> Image.Image:
    """An RGB, L or CMYK image in sRGB; as it is, with a warning, where the profile is of no use for it."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":  # common: a grey copy of a picture that keeps the profile
            image = image.convert("RGB")
        if _SPACES.get(space) != image.mode:
            notices.append(Notice("ICC_PROFILE_IGNORED", "The colour profile is for other colours than the picture's."))
            return image
        transform = _transform_to_srgb(profile, image.mode)
        return image if transform is None else ImageCms.applyTransform(image, transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        notices.append(Notice("ICC_PROFILE_IGNORED", PROFILE_DAMAGED))
        return image


@lru_cache(maxsize=8)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of a profile, or None where it changes no colour by more than 2 of 255 (sRGB by any name)."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "RGB":
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        changed = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform), np.int16)
        if int(np.abs(changed - colours).max()) <= 2:
            return None
    return transform


def _stand_on_grey(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite transparent input onto neutral grey, in strips, because the models need opaque pictures."""
    result = np.empty_like(rgb)
    rows = max(1, STRIP_BYTES // (3 * rgb.shape[1]))
    for top in range(0, rgb.shape[0], rows):
        part = slice(top, top + rows)
        opacity = alpha[part, :, None].astype(np.uint16)
        mixed = rgb[part] * opacity + (255 - opacity) * np.uint16(BEHIND_TRANSPARENCY) + 127
        result[part] = mixed // 255
    return result
