"""From what a provider answered to an alpha or a picture that can be trusted: header first, then decoding.

Shapes: an alpha is HW uint8, [0, 255], 255 is foreground; its size is that of the upright picture that was sent.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutaway.contract import limits
from cutaway.contract.errors import InputError, ProcessingTimeout, RequestCancelled
from cutaway.contract.headers import PictureHeader, check_picture
from cutaway.providers.apart import Check, unchecked
from cutaway.providers.errors import InvalidAnswer
from cutaway.providers.sending import CheckedFile

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_SIDE_PX = max(limits.UPSCALE_SCALES) * limits.UPSCALE_LIMITS.max_long_side_px
_SHORT_PX = max(limits.UPSCALE_SCALES) * limits.UPSCALE_LIMITS.max_short_side_px

ANSWER_LIMITS = limits.InputLimits(
    max_file_bytes=limits.HOSTED_MAX_ANSWER_BYTES,
    max_long_side_px=_SIDE_PX,
    max_short_side_px=_SHORT_PX,
    max_pixels=_SIDE_PX * _SHORT_PX,
    min_side_px=1,
    # A mask is flat and folds further than any photograph; its pixels bound what it can become.
    max_decompression_ratio=math.inf,
)
"""What an answered picture may be: as large as the largest upscaled one."""

GREY_TOLERANCE = 4
"""How far the channels of a grey mask may be apart: JPEG and WebP do not keep them exactly equal."""

ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Matte:
    """A hosted matte.

    Attributes:
        alpha: HW uint8, [0, 255], of the size of the upright picture that was sent.
        provider: who made it ("huggingface").
        model: with which model.
        licence: of its weights, in words.
        cost: what a picture costs, in words.
        requests: HTTP requests that it took.
        elapsed_ms: milliseconds that it took, waits included.
        details: what else the provider said (a prediction's id, metrics).
    """

    alpha: NDArray[np.uint8] = field(repr=False)
    provider: str
    model: str
    licence: str
    cost: str
    requests: int
    elapsed_ms: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Upscaled:
    """A hosted upscaling; attributes as in :class:`Matte`, `data` is the encoded picture as it came."""

    data: bytes = field(repr=False)
    media_type: str
    width_px: int
    height_px: int
    provider: str
    model: str
    licence: str
    cost: str
    requests: int
    elapsed_ms: float
    details: dict[str, Any] = field(default_factory=dict)


def decode_base64(text: str, provider: str) -> bytes:
    """The bytes of base64 text or of a ``data:…;base64,…`` URI.

    Raises:
        InvalidAnswer: it is neither, or larger than an answer may be.
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise invalid(provider, "a data URI that is not base64")
    if len(text) > limits.HOSTED_MAX_ANSWER_BYTES * 4 // 3 + 4:
        raise invalid(provider, "a picture that is too large")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(provider, "damaged base64") from None


def data_uri(data: bytes, media_type: str) -> str:
    """The bytes as a ``data:`` URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def answered_header(data: bytes, provider: str) -> PictureHeader:
    """What an answered picture claims to be.

    Raises:
        InvalidAnswer: it is no picture, too large, or damaged.
    """
    try:
        return check_picture(data, limits=ANSWER_LIMITS)
    except InputError as error:
        # The answer is at fault and not the caller's picture, so the error is another one.
        raise invalid(provider, f"a picture that cannot be used: {error.message}") from None


def alpha_of(data: bytes, size_wh: tuple[int, int], provider: str, check: Check = unchecked) -> NDArray[np.uint8]:
    """The alpha in an answered mask or cut-out, brought to the size of the picture that was sent.

    Cut-outs carry it in their alpha band. Masks are grey; some come with an alpha band that is opaque throughout.

    Args:
        data: an encoded mask (grey) or cut-out (with alpha).
        size_wh: width and height of the upright picture that was sent.

    Raises:
        InvalidAnswer: no picture, or neither a mask nor a cut-out, or of other proportions than the picture.
    """
    header = answered_header(data, provider)
    width, height = size_wh
    _check_proportions((header.width_px, header.height_px), size_wh, provider)
    image = _decoded(data, header, provider, check)
    band = _alpha_band(image, provider)
    if band.size != size_wh:
        from PIL import Image

        band = band.resize((width, height), Image.Resampling.BICUBIC)
    alpha: NDArray[np.uint8] = np.asarray(band, dtype=np.uint8)
    return alpha


def _check_proportions(got_wh: tuple[int, int], sent_wh: tuple[int, int], provider: str) -> None:
    """The picture's own proportions, or the square that models work in, which is stretched back."""
    got, sent = got_wh[0] / got_wh[1], sent_wh[0] / sent_wh[1]
    slack = 1.0 + ASPECT_TOLERANCE + 2.0 / min(got_wh)
    if got_wh[0] != got_wh[1] and not 1 / slack <= got / sent <= slack:
        raise invalid(provider, f"a mask of {got_wh[0]}×{got_wh[1]} pixels for a picture of {sent_wh[0]}×{sent_wh[1]}")


def _decoded(data: bytes, header: PictureHeader, provider: str, check: Check) -> PILImage:
    from PIL import Image

    try:
        image = Image.open(CheckedFile(check, data), formats=[header.format.upper()])
        image.load()
        check()
    except (ProcessingTimeout, RequestCancelled):
        raise
    except Exception:  # Pillow's plugins raise whatever a damaged file drives them to
        raise invalid(provider, f"a damaged {header.format.upper()}") from None
    return image


def _alpha_band(image: PILImage, provider: str) -> PILImage:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        band = image.convert("RGBA").getchannel("A")
        if band.getextrema() != (255, 255):
            return band
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        from PIL import Image

        values = np.asarray(image.convert("I"), dtype=np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8))
    rgb = np.asarray(image.convert("RGB"), dtype=np.int16)
    if int(np.max(rgb.max(axis=2) - rgb.min(axis=2))) > GREY_TOLERANCE:
        raise invalid(provider, "a coloured picture without transparency: neither a mask nor a cut-out")
    return image.convert("L")


def upscaled_size(data: bytes, size_wh: tuple[int, int], scale: int, provider: str) -> PictureHeader:
    """The header of an upscaled picture whose size is what was asked for, within a pixel of rounding per step.

    Raises:
        InvalidAnswer: it is no picture, or of another size: making up for that would silently be something else.
    """
    header = answered_header(data, provider)
    wanted = size_wh[0] * scale, size_wh[1] * scale
    if abs(header.width_px - wanted[0]) > scale or abs(header.height_px - wanted[1]) > scale:
        raise invalid(
            provider,
            f"{header.width_px}×{header.height_px} pixels where {wanted[0]}×{wanted[1]} were asked for",
        )
    return header


def invalid(provider: str, what: str) -> InvalidAnswer:
    """The error for an answer that is no result."""
    return InvalidAnswer(f"{provider} answered with {what.rstrip('.')}.", details={"provider": provider})
