"""Colours that fit a new background, within bounds: the statistical transfer of Reinhard and others, "Color Transfer
between Images" (IEEE Computer Graphics and Applications 21(5), 2001), in CIELAB.

Taken whole it turns people green before a meadow, so mean and spread move by bounded steps
(`limits.MATCH_MAX_LIGHTNESS` and its like), and the caller's strength is a share of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutaway.contract.limits import MATCH_MAX_CHROMA, MATCH_MAX_CONTRAST, MATCH_MAX_LIGHTNESS

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from PIL.ImageFilter import Color3DLUT

Floats = NDArray[np.float64]

OPAQUE_FROM = 250  # alpha from which a pixel shows nothing but the cut-out
FEWEST_PIXELS = 64  # opaque ones, and of the background, for statistics
SAMPLE_PX = 256  # statistics are of a grid of at most so many pixels a side: more make no visible difference
DARK = 0.4  # share of full lightness below which a shift of colour fades out
TABLE_SIDE = 33  # points of the colour table along each axis; between them Pillow interpolates to within one of 255

# sRGB (IEC 61966-2-1) to CIE XYZ with the white D65, each row divided by the white's component.
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_TO_XYZ = _XYZ / _XYZ.sum(axis=1, keepdims=True)
_LAB_EDGE = 6 / 29


def to_lab(rgb: Floats) -> Floats:
    """sRGB (..., 3), 0 to 1 → CIELAB (..., 3) with D65: L 0 to 100, a and b about −110 to 110."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    x, y, z = np.moveaxis(np.where(xyz > _LAB_EDGE**3, np.cbrt(xyz), xyz / (3 * _LAB_EDGE**2) + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: Floats) -> Floats:
    """CIELAB (D65) → sRGB, (..., 3), cut to 0 … 1 where a colour lies outside."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > _LAB_EDGE, f**3, 3 * _LAB_EDGE**2 * (f - 4 / 29))
    linear = np.clip(xyz @ np.linalg.inv(_TO_XYZ).T, 0, 1)
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.asarray(np.where(linear <= 0.0031308, linear * 12.92, curved), np.float64)


def samples(image: PILImage) -> Floats:
    """(N, 3) CIELAB of the opaque pixels of an RGB or RGBA picture, on a grid."""
    step_x, step_y = -(-image.width // SAMPLE_PX), -(-image.height // SAMPLE_PX)
    pixels: NDArray[np.uint8] = np.asarray(image)[step_y // 2 :: step_y, step_x // 2 :: step_x]
    opaque = pixels[..., 3] >= OPAQUE_FROM if pixels.shape[2] == 4 else np.ones(pixels.shape[:2], bool)
    return to_lab(pixels[opaque][:, :3] / 255.0)


def matching(cutouts: Sequence[Floats], behind: Floats, strength: float) -> Color3DLUT | None:
    """A filter for all cut-outs that matches their samples' colours to those of the background around their place; None
    with too few pixels. A `strength` of 0 is no change, of 1 the largest within the bounds."""
    from PIL import ImageFilter

    own = np.concatenate([np.empty((0, 3)), *cutouts])
    if strength == 0 or len(own) < FEWEST_PIXELS or len(behind) < FEWEST_PIXELS:
        return None
    mean = own.mean(axis=0)
    shift = behind.mean(axis=0) - mean
    shift[0] = np.clip(shift[0], -MATCH_MAX_LIGHTNESS, MATCH_MAX_LIGHTNESS)
    shift[1:] *= min(1.0, MATCH_MAX_CHROMA / max(float(np.hypot(shift[1], shift[2])), 1e-9))
    # Lightness, and the two axes of colour alike, so that hues stay what they are.
    spread, own_spread = ((values[0], np.hypot(*values[1:])) for values in (behind.std(axis=0), own.std(axis=0)))
    contrast, saturation = np.array(spread) / np.maximum(own_spread, 1e-3)
    gain = np.clip([contrast, saturation, saturation], 1 / MATCH_MAX_CONTRAST, MATCH_MAX_CONTRAST)

    axis = np.linspace(0, 1, TABLE_SIDE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red changes fastest
    lab = to_lab(np.stack([red, green, blue], axis=-1))
    lightness = np.clip(lab[..., :1], 0, 100) / 100
    # Black stays black and white white, as if another lamp shone; and what is dark has little colour to give.
    weight = np.concatenate([1 - (2 * lightness - 1) ** 4, *2 * [np.minimum(1, lightness / DARK)]], axis=-1)
    moved = lab + strength * weight * (shift + (lab - mean) * (gain - 1))
    return ImageFilter.Color3DLUT(TABLE_SIDE, from_lab(moved).astype(np.float32).ravel())
