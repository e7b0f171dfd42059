"""The foreground's own colour at soft edges.

A pixel at a soft edge shows ``alpha·F + (1 − alpha)·B``. Putting its colour on another background carries B along: a
halo. Here F is estimated by blur fusion (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021): F and B
are first guessed from the colours around, weighted by alpha and 1 − alpha, then corrected so that both together give
the pixel again. The guess is smooth and made on a small copy; the correction is made at full resolution, for soft
pixels alone. Tests hold it against pymatting's multi-level method.

Colours under full transparency are chosen as well. Near the edge they go on as the foreground does, so that scaling
the cut-out mixes no foreign colour in; further away they are one flat colour, the edge's mean, which costs nothing to
compress and tells nothing about what was removed.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.tuning import COLOUR_GRID_PX, COLOUR_REACHES, RIM_PX

_COLUMNS = 1024
_EPSILON = 1e-3


def clean_colours(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], decontaminate: bool) -> NDArray[np.uint8]:
    """Colours of a cut-out, for straight (not premultiplied) alpha.

    Args:
        rgb: (H, W, 3) uint8, the picture.
        alpha: (H, W) uint8.
        decontaminate: estimate the foreground's colour at soft edges; otherwise they keep the picture's.

    Returns:
        (H, W, 3) uint8: the picture where alpha is 255, the estimate at soft edges and a little beyond, a flat colour
        further out.
    """
    opaque = alpha == 255
    near = cv2.dilate((alpha > 0).view(np.uint8), np.ones((2 * RIM_PX + 1, 2 * RIM_PX + 1), np.uint8))
    soft = np.flatnonzero(near > opaque)
    colours = np.empty_like(rgb)
    if not decontaminate:
        colours[:] = _mean(rgb.reshape(-1, 3)[soft])
        cv2.copyTo(rgb, near, colours)
        return colours
    estimate = _estimate(rgb, alpha, soft)
    colours[:] = _mean(estimate)
    cv2.copyTo(rgb, opaque.view(np.uint8), colours)
    colours.reshape(-1, 3)[soft] = estimate
    return colours


def _estimate(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], at: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Foreground colours (N, 3) uint8 of the pixels with flat indices `at` (N,)."""
    if at.size == 0:
        return np.empty((0, 3), np.uint8)
    height, width = alpha.shape
    scale = min(1.0, COLOUR_GRID_PX / max(height, width))
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    foreground, background = _smooth_layers(
        cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA).astype(np.float32),
        cv2.resize(alpha, size_wh, interpolation=cv2.INTER_AREA).astype(np.float32) / 255,
    )
    rows, columns = np.divmod(at, width)
    map_x = (columns.astype(np.float32) + 0.5) * (size_wh[0] / width) - 0.5
    map_y = (rows.astype(np.float32) + 0.5) * (size_wh[1] / height) - 0.5
    f = _sample(foreground, map_x, map_y)
    b = _sample(background, map_x, map_y)
    a = (alpha.reshape(-1)[at].astype(np.float32) / 255)[:, None]
    f += a * (rgb.reshape(-1, 3)[at] - a * f - (1 - a) * b)
    return np.clip(np.rint(f), 0, 255).astype(np.uint8)


def _smooth_layers(
    rgb: NDArray[np.float32], alpha: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smooth guesses of foreground and background, (h, w, 3) float32 each: first from far, then from near."""
    foreground = background = rgb
    opacity, rest = alpha[..., None], 1 - alpha[..., None]
    for reach in COLOUR_REACHES:
        window = (2 * reach + 1, 2 * reach + 1)
        seen_foreground = _mean_weighted(foreground, opacity, window)
        seen_background = _mean_weighted(background, rest, window)
        background = seen_background
        foreground = seen_foreground + opacity * (rgb - opacity * seen_foreground - rest * seen_background)
        np.clip(foreground, 0, 255, out=foreground)
    return foreground, background


def _mean_weighted(
    colours: NDArray[np.float32], weight: NDArray[np.float32], window: tuple[int, int]
) -> NDArray[np.float32]:
    # The small constant lets windows without any weight fall back to the plain mean.
    weight = weight + np.float32(_EPSILON)
    total = cv2.blur(colours * weight, window, borderType=cv2.BORDER_REPLICATE)
    return total / cv2.blur(weight, window, borderType=cv2.BORDER_REPLICATE)[..., None]


def _sample(image: NDArray[np.float32], map_x: NDArray[np.float32], map_y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bilinear values (N, 3) of an image at N points; in rows of points, since OpenCV limits their length."""
    count = map_x.size
    rows = -(-count // _COLUMNS)
    grid_x, grid_y = np.zeros((rows, _COLUMNS), np.float32), np.zeros((rows, _COLUMNS), np.float32)
    grid_x.reshape(-1)[:count] = map_x
    grid_y.reshape(-1)[:count] = map_y
    values = cv2.remap(image, grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, np.float32).reshape(-1, 3)[:count]


def _mean(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.rint(colours.mean(axis=0)).astype(np.uint8) if len(colours) else np.zeros(3, np.uint8)
