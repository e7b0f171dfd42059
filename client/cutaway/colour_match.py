"""Colours that fit a new background, within bounds: the statistical transfer of Reinhard and others, "Color Transfer
between Images" (IEEE Computer Graphics and Applications 21(5), 2001), on the channels of sRGB.

Taken whole it turns people green before a meadow, so mean and spread move by bounded steps
(`limits.MATCH_MAX_LIGHTNESS` and its like), and the caller's strength is a share of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import ImageStat
from PIL.Image import Image

from cutaway.contract.limits import MATCH_MAX_CONTRAST, MATCH_MAX_LIGHTNESS, MATCH_MAX_TINT

OPAQUE_FROM = 250  # alpha from which a pixel shows nothing but the cut-out
FEWEST_PIXELS = 64  # opaque ones, and of the background, for statistics


def histogram_of(image: Image) -> list[int]:
    """How often each level of red, green and blue occurs among the opaque pixels of an RGB or RGBA picture."""
    opaque = None
    if image.mode == "RGBA":
        opaque = image.getchannel("A").point(lambda value: 255 if value >= OPAQUE_FROM else 0)
    return image.convert("RGB").histogram(opaque)


def match_colours(cutouts: Sequence[list[int]], behind: list[int], strength: float) -> list[int] | None:
    """A table for `Image.point` on RGBA that matches the colours of all cut-outs' histograms to those of the background
    around their place; None with too few pixels. A `strength` of 1 is the largest change within the bounds."""
    own, other = ImageStat.Stat([sum(each) for each in zip(*cutouts, strict=True)]), ImageStat.Stat(behind)
    if min(own.count[0], other.count[0]) < FEWEST_PIXELS:
        return None
    mean = np.array(own.mean)
    shift = np.array(other.mean) - mean
    lightness = shift.mean()
    tint = (shift - lightness) * min(1.0, MATCH_MAX_TINT / max(np.abs(shift - lightness).max(), 1e-9))
    shift = tint + np.clip(lightness, -MATCH_MAX_LIGHTNESS, MATCH_MAX_LIGHTNESS)
    # One gain for all channels, so that hues stay what they are.
    gain = np.clip(sum(other.stddev) / max(sum(own.stddev), 1e-3), 1 / MATCH_MAX_CONTRAST, MATCH_MAX_CONTRAST)
    levels = np.arange(256.0)[:, None]
    weight = 1 - (levels / 127.5 - 1) ** 4  # black stays black and white white, as if another lamp shone
    moved = levels + strength * weight * (shift + (levels - mean) * (gain - 1))
    return [*np.rint(np.clip(moved, 0, 255)).astype(int).T.ravel().tolist(), *range(256)]
