"""Answers of hosted models: a failed one → its typed error, a picture → a validated alpha or header.

All errors but LicenceNotAccepted let a fallback chain go on to the next tier. Details name the provider and the HTTP
status where there was one; no message, representation or detail holds a token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from cutaway.contract import errors, limits
from cutaway.contract.headers import PictureHeader, check_picture
from cutaway.inputs import open_checked, read_data_uri
from cutaway.loop import in_thread
from cutaway.resilience import Deadline

T = TypeVar("T")

# Bounds of an answered picture: the size of one upscaled by 4, and no ratio, since masks are flat.
_PX = (4 * 2560, 4 * 1440, 16 * 2560 * 1440, 1)
ANSWER_LIMITS = limits.InputLimits(limits.INPUT_LIMITS.formats, limits.HOSTED_MAX_ANSWER_BYTES, *_PX, math.inf)

GREY_TOLERANCE = 4  # between a grey mask's channels: JPEG and WebP do not keep them exactly equal
ASPECT_TOLERANCE = 0.02

ABOUT_THE_PICTURE = re.compile(
    r"cannot identify image|(?:invalid|corrupt\w*|damaged|unsupported|unreadable|truncated|malformed) (?:input )?"
    r"(?:image|picture)|image (?:file )?(?:is )?(?:invalid|corrupt\w*|truncated|too (?:large|small|big))"
    r"|(?:decod\w*|pars\w*|open|read) (?:the )?(?:input )?image",
    re.IGNORECASE,
)
"""Only these 400s and 422s are about the picture; others are about parameters, which the next provider may accept."""


class LicenceNotAccepted(errors.InvalidOption):
    """The weights may not be used commercially and `accept_noncommercial` was not given. Details: model, licence."""


class ProviderUnavailable(errors.ServerUnavailable):
    """Temporarily unavailable: worth a retry. Details: provider, status."""


class ProviderRefused(ProviderUnavailable):
    """The same request is always refused: credentials, a model that is not served, parameters."""

    retry = False


class GatewayTimeout(errors.ProcessingTimeout):
    """The service's own timeout was exceeded; worth a retry."""

    retry = True


class InvalidAnswer(errors.InferenceError):
    """The model failed, or its answer is damaged, too large, of another type or size. Details: provider."""

    retry = False


class LocalTimeout(errors.ProcessingTimeout):
    """Decoding or composing on this machine exceeded the deadline: no tier failed."""


BY_STATUS: dict[int, type[errors.CutawayError]] = {408: GatewayTimeout, 504: GatewayTimeout, 409: ProviderUnavailable}
BY_STATUS |= {413: errors.FileTooLarge, 415: errors.InvalidFormat, 429: errors.RateLimitExceeded}
BY_STATUS |= {503: errors.Overloaded}


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """The fields of every hosted result: which model of which provider made it, its weights' licence and the cost in
    words, the HTTP requests and milliseconds that it took, and other details (a prediction's id, metrics)."""

    provider: str
    model: str
    licence: str
    cost: str
    requests: int
    elapsed_ms: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Matte(Hosted):
    """`alpha` is HW uint8, [0, 255], 255 is foreground, of the size of the upright picture that was sent."""

    alpha: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Upscaled(Hosted):
    """`data` is the encoded picture of the answer."""

    data: bytes = field(repr=False)
    media_type: str
    width_px: int
    height_px: int


def invalid(provider: str, what: str) -> InvalidAnswer:
    """The error for an invalid answer."""
    return InvalidAnswer(f"{provider} answered with {what.rstrip('.')}.", details={"provider": provider})


def parse_json(content: bytes) -> Any:
    """The content as JSON, or None where it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def form_of(response: httpx.Response) -> dict[str, Any]:
    """The body as a JSON object, empty where it is none."""
    return form if isinstance(form := parse_json(response.content), dict) else {}


def decode_base64(text: str, provider: str) -> bytes:
    """The bytes of base64 text or of a ``data:…;base64,…`` URI; InvalidAnswer where it is neither, or too large."""
    try:
        uri = text if text.startswith("data:") else f"data:;base64,{text}"
        return read_data_uri(uri, limits.HOSTED_MAX_ANSWER_BYTES)[0]
    except errors.InputError as error:
        raise invalid(provider, f"base64 that cannot be used: {error.message}") from None


def _header(data: bytes, provider: str) -> PictureHeader:
    """The header of an answered picture; InvalidAnswer, since it is no error of the caller's picture."""
    try:
        return check_picture(data, limits=ANSWER_LIMITS)
    except errors.InputError as error:
        raise invalid(provider, f"a picture that cannot be used: {error.message}") from None


def alpha_of(data: bytes, size_wh: tuple[int, int], provider: str) -> NDArray[np.uint8]:
    """The alpha in an answered mask (grey) or cut-out (in its alpha band), resized to the picture that was sent; a
    square one, as many models return, is stretched back. InvalidAnswer where it is neither, or of another aspect ratio.
    """
    from PIL import Image

    header = _header(data, provider)
    width, height, aspect = header.width_px, header.height_px, size_wh[0] / size_wh[1]
    slack = 1.0 + ASPECT_TOLERANCE + 2.0 / min(width, height)
    if width != height and not 1 / slack <= width / height / aspect <= slack:
        raise invalid(provider, f"a mask of {width}×{height} pixels for a picture of {size_wh[0]}×{size_wh[1]}")
    try:
        image = open_checked(data, header)
        image.load()
    except Exception:  # Pillow's plugins raise many exceptions on damaged files
        raise invalid(provider, f"a damaged {header.format.upper()}") from None
    band = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if band is None or band.getextrema() == (255, 255):  # some masks have an alpha band that is opaque throughout
        rgb = np.asarray(image.convert("RGB"), dtype=np.int16)
        if image.mode.startswith("I"):  # 16 bits, of which Pillow would take the lower eight
            band = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
        elif int(np.ptp(rgb, axis=2).max()) > GREY_TOLERANCE:
            raise invalid(provider, "a coloured picture without transparency: neither a mask nor a cut-out")
        else:
            band = image.convert("L")
    return np.asarray(band.resize(size_wh, Image.Resampling.BICUBIC), np.uint8)


def upscaled_header(data: bytes, size_wh: tuple[int, int], scale: int, provider: str) -> PictureHeader:
    """The header of an upscaled picture; InvalidAnswer where it has not the requested size, within rounding."""
    header = _header(data, provider)
    got, wanted = (header.width_px, header.height_px), (size_wh[0] * scale, size_wh[1] * scale)
    if max(abs(got[0] - wanted[0]), abs(got[1] - wanted[1])) > scale:
        raise invalid(provider, "{}×{} pixels where {}×{} were asked for".format(*got, *wanted))
    return header


async def run_locally(doing: str, deadline: Deadline, work: Callable[[], T]) -> T:
    """The result of work in a thread; LocalTimeout where it exceeds the deadline."""
    try:
        return await in_thread(doing, deadline, work)
    except errors.ProcessingTimeout as error:
        raise LocalTimeout(error.message, details=error.details) from None
