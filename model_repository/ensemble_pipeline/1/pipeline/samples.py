"""Samples of any depth → 8 bits and alpha, and what a file says beside its pixels."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from cutaway.contract.errors import CorruptImage
from numpy.typing import NDArray
from PIL import Image

_RESOLUTION_TAGS, _UNIT_TAG = (0x011A, 0x011B), 0x0128
_DPI_PER_UNIT = {2: 1.0, 3: 2.54}
MIN_DPI, MAX_DPI = 1.0, 10_000.0
"""Densities outside are mistakes."""


def to_8_bit(image: Image.Image, data: bytes) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """Pixels in a mode that a colour profile applies to (RGB, L or CMYK), and the alpha (H, W) uint8 apart.

    Args:
        image: loaded.
        data: its file.
    """
    mode, transparent = image.mode, image.info.get("transparency")
    if mode in ("I;16", "I;16L", "I;16B", "I"):
        # Pillow's own conversion clips at 255 instead of scaling.
        samples = np.asarray(image).astype(np.uint16)
        return Image.fromarray((samples >> 8).astype(np.uint8)), _unless(samples, transparent)
    if mode in ("LA", "La"):
        if mode == "La":
            image = image.convert("LA")
        return image.getchannel("L"), np.asarray(image.getchannel("A"))
    if mode in ("RGBA", "PA", "RGBa"):
        return _apart(image)
    if transparent is None:
        return (image if mode in ("RGB", "L", "CMYK") else image.convert("L" if mode == "1" else "RGB")), None
    bits = data[24] if image.format == "PNG" else 8
    if bits == 16:  # Pillow keeps the upper 8 bits, and the colour that is transparent has 16
        return image.convert("RGB"), _alpha_of_16_bits(data)
    if mode == "L" and isinstance(transparent, int):
        # Pillow spreads samples of 2 and 4 bits over 0 to 255, but not the grey that is transparent.
        return image, _unless(np.asarray(image), transparent * 255 // (2**bits - 1))
    return _apart(image)


def _apart(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8]]:
    rgba = image.convert("RGBA")
    return rgba.convert("RGB"), np.asarray(rgba.getchannel("A"))


def _unless(samples: NDArray[Any], transparent: Any) -> NDArray[np.uint8] | None:
    return None if transparent is None else np.where(samples == transparent, 0, 255).astype(np.uint8)


def _alpha_of_16_bits(data: bytes) -> NDArray[np.uint8]:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.ndim != 3 or decoded.shape[2] != 4:
        raise CorruptImage("The PNG cannot be decoded.")
    return np.where(decoded[..., 3] == 0, 0, 255).astype(np.uint8)


def exif_of(image: Image.Image) -> Image.Exif:
    """The file's EXIF block alone."""
    exif = Image.Exif()
    exif.load(image.info.get("exif") or b"")
    return exif


def density_of(image: Image.Image) -> tuple[float, float] | None:
    """Horizontal and vertical pixels per inch as stored, or None where the file says nothing of use."""
    try:
        found = image.info.get("dpi")
        if found is None:
            exif = exif_of(image)
            found = [float(exif[tag]) * _DPI_PER_UNIT[int(exif.get(_UNIT_TAG, 2))] for tag in _RESOLUTION_TAGS]
        across, down = (float(value) for value in found)
    except Exception:  # whatever a damaged block holds, it is no reason to refuse the picture
        return None
    return (across, down) if min(across, down) >= MIN_DPI and max(across, down) <= MAX_DPI else None
