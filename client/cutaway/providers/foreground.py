"""The foreground's own colour at soft edges, with numpy and Pillow alone.

A soft pixel shows ``alpha·F + (1 − alpha)·B``. Put on another background as it is, it carries B along: a halo. F is
estimated by blur fusion (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021), as the server does with
OpenCV: F and B are guessed from what is around, weighted by alpha and 1 − alpha, on a small copy; then F is corrected
so that both together give the pixel again, at full resolution and for soft pixels alone.

The full resolution is gone through in bands of rows: what a band needs stays in the processor's cache, and whoever
gives the call up is noticed between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cutaway.providers.apart import Check, unchecked

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

GRID_PX = 512
"""Longer side of the copy on which colours are guessed: they are smooth."""

REACHES_PX = (45, 3)
"""Radii of the windows on that copy: first from far, where the foreground certainly is, then from near."""

BAND_PX = 1 << 17
"""Pixels that are worked on at once: about 10 ms where all of them are soft."""

MANY_SOFT = 0.25
"""From this share of a band's pixels on, all of them are computed: picking them out takes longer."""

_EPSILON = np.float32(1e-3)


def bands(height: int, width: int, check: Check = unchecked) -> Iterator[slice]:
    """The rows of a picture, band by band, with a check before each."""
    rows = max(1, BAND_PX // max(1, width))
    for top in range(0, height, rows):
        check()
        yield slice(top, min(top + rows, height))


def clean_colours(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], check: Check = unchecked) -> NDArray[np.uint8]:
    """Colours for straight alpha: the picture's where alpha is 255, else an estimate of the foreground's own.

    Args:
        rgb: (H, W, 3) uint8.
        alpha: (H, W) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = alpha.shape
    if not alpha.any() or alpha.min() == 255:
        return rgb
    foreground, background = (_small_image(layer) for layer in _smooth_layers(rgb, alpha))
    check()
    colours = np.empty_like(rgb)
    for rows in bands(height, width, check):
        band = alpha[rows]
        if band.min() == 255:
            colours[rows] = rgb[rows]
            continue
        front = _enlarged(foreground, rows, (height, width))
        soft = (band > 0) & (band < 255)
        if not soft.any():
            colours[rows] = np.where(band[..., None] == 0, front, rgb[rows])
            continue
        behind = _enlarged(background, rows, (height, width))
        if np.count_nonzero(soft) < MANY_SOFT * soft.size:
            found = np.where(band[..., None] == 0, front, rgb[rows])
            found[soft] = _corrected(rgb[rows][soft], front[soft], behind[soft], band[soft])
        else:
            found = _corrected(rgb[rows], front, behind, band)
        colours[rows] = found
    return colours


def _corrected(
    seen: NDArray[np.uint8], front: NDArray[np.uint8], behind: NDArray[np.uint8], alpha: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """``F + alpha·(I − alpha·F − (1 − alpha)·B)``; the picture's own colour where alpha is 255, and F where it is 0."""
    a = alpha.astype(np.float32)[..., None]
    a *= np.float32(1 / 255)
    f, b = front.astype(np.float32), behind.astype(np.float32)
    explained = f - b
    explained *= a
    explained += b
    np.subtract(seen, explained, out=explained)
    explained *= a
    f += explained
    f += np.float32(0.5)
    np.clip(f, 0, 255, out=f)
    return f.astype(np.uint8)


def _smooth_layers(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    small = _reduced(rgb).astype(np.float32)
    opacity = _reduced(alpha).astype(np.float32)[..., None] / 255
    foreground = background = small
    for reach in REACHES_PX:
        seen_foreground = _mean_around(foreground, opacity, reach)
        background = _mean_around(background, 1 - opacity, reach)
        foreground = seen_foreground + opacity * (small - opacity * seen_foreground - (1 - opacity) * background)
        foreground = np.clip(foreground, 0, 255)
    return foreground, background


def _mean_around(colours: NDArray[np.float32], weight: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """The weighted mean in a square window; the small constant lets windows without weight have a plain mean."""
    weight = weight + _EPSILON
    mean: NDArray[np.float32] = _sums(colours * weight, reach) / _sums(weight, reach)
    return mean


def _sums(values: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """Sums over a (2·reach + 1)² window by running sums, (h, w, c) float32; the edge is repeated outwards."""
    sums = np.pad(values.astype(np.float64), ((reach + 1, reach), (reach + 1, reach), (0, 0)), mode="edge")
    for axis in (0, 1):
        # The first line of the padding is only there to be taken off: the sum up to before the window.
        total = np.cumsum(sums, axis=axis)
        length = total.shape[axis]
        window = 2 * reach + 1
        upper = np.take(total, np.arange(window, length), axis=axis)
        lower = np.take(total, np.arange(0, length - window), axis=axis)
        sums = upper - lower
    return sums.astype(np.float32)


def _reduced(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = image.shape[:2]
    factor = min(1.0, GRID_PX / max(height, width))
    size_wh = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size_wh, Image.Resampling.BOX))


def _small_image(layer: NDArray[np.float32]) -> PILImage:
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(layer), 0, 255).astype(np.uint8))


def _enlarged(small: PILImage, rows: slice, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Some rows of the layer at full resolution, the same as if all of it had been enlarged."""
    from PIL import Image

    height, width = size_hw
    box = (0, small.height * rows.start / height, small.width, small.height * rows.stop / height)
    return np.asarray(small.resize((width, rows.stop - rows.start), Image.Resampling.BILINEAR, box=box))
