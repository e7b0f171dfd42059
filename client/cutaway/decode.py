"""Encoded files → upright pixels in sRGB, with Pillow alone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutaway.contract.errors import CorruptImage
from cutaway.contract.headers import PictureHeader, check_dimensions
from cutaway.contract.limits import INPUT_LIMITS, InputLimits
from cutaway.inputs import encode, pil_of_array

# The transpositions of EXIF's orientations, as `PIL.Image.Transpose` numbers them: mirrored, turned by 180°, mirrored
# upside down; then mirrored on the main diagonal, turned clockwise, mirrored on the other one, turned back.
_TURNS: dict[int, Any] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from cutaway.inputs import ImageInput


def decode_upright(data: bytes, header: PictureHeader) -> PILImage:
    """A picture as people see it.

    Args:
        data: the encoded file.
        header: what :func:`cutaway.contract.headers.check_picture` read from it.

    Returns:
        RGB, or RGBA where it is transparent somewhere; upright by its EXIF orientation, in sRGB.

    Raises:
        CorruptImage: it cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[header.format.upper()]) as image:
            _check_size(image, header)
            image.load()
            turn = _TURNS.get(_orientation(image))
            return _plain(image) if turn is None else _plain(image).transpose(turn)
    except (CorruptImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged file drives them to
        raise CorruptImage(f"The {header.format.upper()} cannot be decoded.") from error


def decode_input(image: ImageInput, limits: InputLimits = INPUT_LIMITS) -> PILImage:
    """Any kind of input as :func:`decode_upright` gives it; PIL images and arrays as their pixels are.

    Raises:
        OSError, TypeError, InputError: see :func:`cutaway.inputs.encode`.
    """
    taken: Any = image
    if hasattr(taken, "getbands"):
        check_dimensions(PictureHeader("png", *taken.size), limits)
        try:
            taken.load()
            return _plain(taken)
        except Exception as error:  # as above, for a file that is still to be read
            raise CorruptImage("The PIL image cannot be decoded.") from error
    if hasattr(taken, "__array_interface__"):
        return _plain(pil_of_array(taken, limits))
    picture = encode(image, limits=limits)
    return decode_upright(picture.data, picture.header)


def _orientation(image: PILImage) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged EXIF block says nothing, and is no reason to refuse the picture
        return 1


def _check_size(image: PILImage, header: PictureHeader) -> None:
    if image.size != (header.width_px, header.height_px):
        raise CorruptImage("The file's headers disagree about its size.")


def _plain(image: PILImage) -> PILImage:
    alpha = own_alpha(image)
    rgb = to_srgb(image)
    if alpha is not None:
        from PIL import Image

        rgb.putalpha(Image.fromarray(alpha))
    rgb.info.clear()
    return rgb


def own_alpha(image: PILImage) -> NDArray[np.uint8] | None:
    """(H, W) uint8, a picture's own transparency; None where it has none."""
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return None
    alpha: NDArray[np.uint8] = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if int(alpha.min()) == 255 else alpha


def to_srgb(image: PILImage) -> PILImage:
    """A copy in RGB, converted from its own colour profile where it has one that works."""
    from PIL import Image, ImageCms

    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            plain = image.convert("RGB") if image.mode == "RGBA" else image
            converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None
        if converted is not None:
            return converted
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"), dtype=np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
