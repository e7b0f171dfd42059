"""Colours that fit a new background, within bounds: the statistical transfer of Reinhard and others, "Color Transfer
between Images" (IEEE Computer Graphics and Applications 21(5), 2001), on the channels of sRGB.

Taken whole it turns people green before a meadow, so mean and spread move by bounded steps
(`limits.MATCH_MAX_LIGHTNESS` and its like), and the caller's strength is a share of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutaway.contract.limits import MATCH_MAX_CONTRAST, MATCH_MAX_LIGHTNESS, MATCH_MAX_TINT

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Floats = NDArray[np.float64]

OPAQUE_FROM = 250  # alpha from which a pixel shows nothing but the cut-out
FEWEST_PIXELS = 64  # opaque ones, and of the background, for statistics
SAMPLE_PX = 256  # statistics are of a grid of at most so many pixels a side: more make no visible difference


def sample_colours(image: PILImage) -> Floats:
    """(N, 3) levels, 0 to 255, of the opaque pixels of an RGB or RGBA picture, on a grid."""
    step_x, step_y = -(-image.width // SAMPLE_PX), -(-image.height // SAMPLE_PX)
    pixels = np.asarray(image)[step_y // 2 :: step_y, step_x // 2 :: step_x].astype(np.float64)
    opaque = pixels[..., 3] >= OPAQUE_FROM if pixels.shape[2] == 4 else np.ones(pixels.shape[:2], bool)
    return np.asarray(pixels[opaque][:, :3])


def match_colours(cutouts: Sequence[Floats], behind: Floats, strength: float) -> list[int] | None:
    """A table for `Image.point` on RGBA that matches all cut-outs' samples to those of the background around their
    place; None with too few pixels. A `strength` of 0 is no change, of 1 the largest within the bounds."""
    own = np.concatenate([np.empty((0, 3)), *cutouts])
    if strength == 0 or len(own) < FEWEST_PIXELS or len(behind) < FEWEST_PIXELS:
        return None
    mean = own.mean(axis=0)
    shift = behind.mean(axis=0) - mean
    lightness = shift.mean()
    tint = (shift - lightness) * min(1.0, MATCH_MAX_TINT / max(np.abs(shift - lightness).max(), 1e-9))
    shift = tint + np.clip(lightness, -MATCH_MAX_LIGHTNESS, MATCH_MAX_LIGHTNESS)
    # One gain for all channels, so that hues stay what they are.
    contrast = behind.std(axis=0).mean() / max(own.std(axis=0).mean(), 1e-3)
    gain = np.clip(contrast, 1 / MATCH_MAX_CONTRAST, MATCH_MAX_CONTRAST)
    levels = np.arange(256.0)[:, None]
    weight = 1 - (levels / 127.5 - 1) ** 4  # black stays black and white white, as if another lamp shone
    moved = levels + strength * weight * (shift + (levels - mean) * (gain - 1))
    return [*np.rint(np.clip(moved, 0, 255)).astype(int).T.ravel().tolist(), *range(256)]
