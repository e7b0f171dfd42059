"""The foreground's own colour at soft edges, with numpy and Pillow alone.

A soft pixel shows ``alpha·F + (1 − alpha)·B``. Put on another background as it is, it carries B along: a halo. F is
estimated by blur fusion (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021), as the server does with
OpenCV: F and B are guessed from what is around, weighted by alpha and 1 − alpha, on a small copy; then F is corrected
so that both together give the pixel again, at full resolution and for soft pixels alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRID_PX = 512
"""Longer side of the copy on which colours are guessed: they are smooth."""

REACHES_PX = (45, 3)
"""Radii of the windows on that copy: first from far, where the foreground certainly is, then from near."""

_EPSILON = np.float32(1e-3)


def clean_colours(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours for straight alpha: the picture's where alpha is 255, else an estimate of the foreground's own.

    Args:
        rgb: (H, W, 3) uint8.
        alpha: (H, W) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    rows, columns = np.nonzero(alpha < 255)
    if rows.size == 0 or not alpha.any():
        return rgb
    foreground, background = (_enlarged(layer, rgb) for layer in _smooth_layers(rgb, alpha))
    colours = rgb.copy()
    a = alpha[rows, columns].astype(np.float32)[:, None] / 255
    f, b = foreground[rows, columns].astype(np.float32), background[rows, columns].astype(np.float32)
    f += a * (rgb[rows, columns] - a * f - (1 - a) * b)
    colours[rows, columns] = np.clip(np.rint(f), 0, 255).astype(np.uint8)
    return colours


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


def _enlarged(layer: NDArray[np.float32], like: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    small = Image.fromarray(np.clip(np.rint(layer), 0, 255).astype(np.uint8))
    return np.asarray(small.resize((like.shape[1], like.shape[0]), Image.Resampling.BILINEAR))
