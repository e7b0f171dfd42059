"""A picture as it leaves for a hosted model: checked, decoded, upright, and nothing but the picture."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutaway.contract import limits
from cutaway.contract.errors import CorruptImage, ProcessingTimeout, RequestCancelled
from cutaway.contract.headers import check_picture
from cutaway.decode import own_alpha, to_srgb
from cutaway.providers.apart import Check, unchecked
from cutaway.providers.metadata import stripped

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

SENT_QUALITY = 95
"""Of a JPEG that is made here: what is lost is less than a model sees."""


@dataclass(frozen=True)
class Sendable:
    """A picture as it is cut, and as it is sent.

    Attributes:
        rgb: (H, W, 3) uint8, upright, in sRGB.
        alpha: (H, W) uint8, its own transparency, or None.
        orientation: the EXIF orientation that was applied, 1 to 8.
        format: of the file that came in.
        data: what is sent: upright and without metadata, which may tell a place and a time and is nobody's business.
        media_type: what `data` is.
    """

    rgb: NDArray[np.uint8] = field(repr=False)
    alpha: NDArray[np.uint8] | None = field(repr=False)
    orientation: int
    format: str
    data: bytes = field(repr=False)
    media_type: str

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.rgb.shape[1], self.rgb.shape[0]


class CheckedFile(io.BytesIO):
    """A file in memory that checks before each of its pieces: codecs read and write 64 KiB at once."""

    def __init__(self, check: Check, data: bytes = b"") -> None:
        super().__init__(data)
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)

    def write(self, data: object, /) -> int:
        self._check()
        return super().write(data)  # type: ignore[arg-type]


def sendable(
    data: bytes,
    media_type: str | None = None,
    *,
    input_limits: limits.InputLimits | None = None,
    check: Check = unchecked,
) -> Sendable:
    """Check, decode and put a picture upright, and leave out of what is sent all that is not the picture.

    A file whose pixels are as they should be (upright, in sRGB, opaque) is sent with its own coded data, less all that
    decoding does not need; any other is encoded anew.

    Raises:
        InputError: it is refused by its header; CorruptImage where it cannot be decoded.
    """
    from PIL import Image, ImageOps

    header = check_picture(data, media_type, limits=input_limits or limits.INPUT_LIMITS)
    try:
        with Image.open(CheckedFile(check, data), formats=[header.format.upper()]) as image:
            orientation = image.getexif().get(0x0112, 1)
            orientation = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
            as_it_is = orientation == 1 and "icc_profile" not in image.info
            upright = ImageOps.exif_transpose(image)
            check()
        own = own_alpha(upright)
        rgb = to_srgb(upright)
        check()
    except (ProcessingTimeout, RequestCancelled):
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged file drives them to
        raise CorruptImage(f"The {header.format.upper()} cannot be decoded.") from error
    kept = stripped(data, header.format) if as_it_is and own is None else None
    sent, sent_type = _encoded(rgb, header.format, check) if kept is None else (kept, header.media_type)
    return Sendable(np.asarray(rgb), own, orientation, header.format, sent, sent_type)


def _encoded(rgb: PILImage, source_format: str, check: Check) -> tuple[bytes, str]:
    """Losslessly where the file was lossless and that stays within the limits of a file."""
    plain = rgb.copy()
    plain.info.clear()
    file = CheckedFile(check)
    if source_format in ("png", "bmp"):
        plain.save(file, "PNG", compress_level=3)
        if file.tell() <= limits.INPUT_LIMITS.max_file_bytes:
            return file.getvalue(), "image/png"
        file = CheckedFile(check)
    plain.save(file, "JPEG", quality=SENT_QUALITY, subsampling=0)
    return file.getvalue(), "image/jpeg"
