"""Encoded files → upright pixels in sRGB, with Pillow."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutaway.contract.errors import CorruptImage
from cutaway.contract.headers import PictureHeader

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

# EXIF orientation → the transposition that undoes it, as `PIL.Image.Transpose` numbers them.
_TURNS: dict[int, Any] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def open_checked(data: bytes, header: PictureHeader) -> PILImage:
    """Open a file whose header passed our limits. `Image.open` would hold it against Pillow's own bound as well, a
    global below `limits.FIT_LIMITS`, so the format's reader is called directly.

    Raises:
        CorruptImage: the decoder finds another size than the header check.
    """
    from PIL import Image

    Image.preinit()
    if header.format.upper() not in Image.OPEN:
        Image.init()
    image: PILImage = Image.OPEN[header.format.upper()][0](io.BytesIO(data), "")
    if image.size != (header.width_px, header.height_px):
        raise CorruptImage("The file's headers disagree about its size.")
    return image


def decode_upright(data: bytes, header: PictureHeader) -> PILImage:
    """RGB, or RGBA where the picture is transparent somewhere; upright by its EXIF orientation, in sRGB.

    Args:
        data: the encoded file.
        header: what :func:`cutaway.contract.headers.check_picture` read from it.

    Raises:
        CorruptImage: it cannot be decoded.
    """
    try:
        with open_checked(data, header) as image:
            image.load()
            return plain(upright(image))
    except (CorruptImage, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise many exceptions on damaged files
        raise CorruptImage(f"The {header.format.upper()} cannot be decoded.") from error


def orientation_of(image: PILImage) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is no valid one."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block is ignored
        return 1
    return found if found in _TURNS else 1


def upright(image: PILImage) -> PILImage:
    """The image turned by its EXIF orientation; the same object where it is upright."""
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def plain(image: PILImage) -> PILImage:
    """A copy in sRGB without metadata: RGB, or RGBA where the picture is transparent somewhere."""
    from PIL import Image

    alpha, rgb = own_alpha(image), to_srgb(image)
    if alpha is not None:
        rgb.putalpha(Image.fromarray(alpha))
    rgb.info.clear()
    return rgb


def own_alpha(image: PILImage) -> NDArray[np.uint8] | None:
    """(H, W) uint8, a picture's own transparency; None where it has none."""
    if not image.has_transparency_data:
        return None
    alpha: NDArray[np.uint8] = np.asarray(_without_la(image).convert("RGBA").getchannel("A"))
    return None if alpha.min(initial=255) == 255 else alpha


def to_srgb(image: PILImage) -> PILImage:
    """A copy in RGB, converted from the image's own colour profile where that is valid."""
    from PIL import Image, ImageCms

    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"), dtype=np.int64)
        image = Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = _without_la(image).convert("RGBA").convert("RGB")
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            found = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            found = None
        if found is not None:
            return found
    return image.convert("RGB")


def _without_la(image: PILImage) -> PILImage:
    return image.convert("LA") if image.mode == "La" else image  # which Pillow converts to nothing else
