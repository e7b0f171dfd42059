"""Encoded files → upright pixels in sRGB, with Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from cutaway.contract import png
from cutaway.contract.errors import CorruptImage, InputError
from cutaway.contract.headers import PictureHeader

# EXIF orientation → the transposition that undoes it, as `PIL.Image.Transpose` numbers them.
_TURNS: dict[int, Any] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


@contextmanager
def damage_is_corrupt(what: str) -> Iterator[None]:
    """CorruptImage for the many exceptions that Pillow's plugins raise on damaged files or metadata."""
    try:
        yield
    except (InputError, Warning, MemoryError):
        raise
    except Exception as error:
        raise CorruptImage(f"The {what} cannot be decoded.") from error


def open_checked(data: bytes, header: PictureHeader) -> Image.Image:
    """Open a file whose header passed the checks; CorruptImage where the decoder finds another size. `Image.open` would
    also apply Pillow's own bound, a global below `limits.FIT_LIMITS`: the format's reader is called directly."""
    Image.preinit()
    if header.format.upper() not in Image.OPEN:
        Image.init()
    if header.format == "png":
        data = png.readable(data)[0]
    if header.end_bytes is not None:
        data = data[: header.end_bytes] + b"\xff\xd9"
    image: Image.Image = Image.OPEN[header.format.upper()][0](io.BytesIO(data), "")
    if image.size != (header.width_px, header.height_px):
        raise CorruptImage("The file's headers disagree about its size.")
    return image


def decode_upright(data: bytes, header: PictureHeader) -> Image.Image:
    """RGB, or RGBA where the picture is transparent somewhere; upright by its EXIF orientation, in sRGB; or
    CorruptImage."""
    with damage_is_corrupt(header.format.upper()), open_checked(data, header) as image:
        image.load()
        return to_srgb(turn_upright(image))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is no valid one. XMP's is ignored, as by browsers and the server."""
    exif = Image.Exif()
    try:
        if image.info.get("exif"):
            exif.load(image.info["exif"])
        elif not {"xmp", "XML:com.adobe.xmp"} & set(image.info):
            exif = image.getexif()
        found = exif.get(0x0112, 1)
    except Exception:  # a damaged EXIF block is ignored
        return 1
    return found if found in _TURNS else 1


def turn_upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; the same object where it is upright."""
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def to_srgb(image: Image.Image) -> Image.Image:
    """A copy in sRGB without metadata: RGB, or RGBA where the picture is transparent somewhere."""
    profile, alpha, found = image.info.get("icc_profile"), None, None
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"), dtype=np.int64)
        image = Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8))
    elif image.mode in ("LA", "La"):  # grey stays apart, since a grey profile applies to nothing else
        image = image.convert("LA")
        alpha, image = image.getchannel("A"), image.getchannel("L")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
                image = image.convert("RGB")
            found = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # an invalid profile says nothing
    rgb = found or image.convert("RGB")
    if alpha is not None and rgb.width and rgb.height and alpha.getextrema() != (255, 255):
        rgb.putalpha(alpha)
    rgb.info.clear()
    return rgb
