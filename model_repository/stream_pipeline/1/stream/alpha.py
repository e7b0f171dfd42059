"""A coarse mask → an alpha of the frame's size, with edges that are neither jagged nor wide."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from stream.fit import Fit
from stream.tuning import EDGE_STEEPNESS, LOGIT_SPAN

_LEVELS = 127.5
_STEEPER = np.clip(
    np.rint((1 / (1 + np.exp(-(np.arange(256) / _LEVELS - 1) * LOGIT_SPAN * EDGE_STEEPNESS)) - 0.02) * 255 / 0.96),
    0,
    255,
).astype(np.uint8)
"""From the enlarged mask (0 for −1, 255 for 1) to the alpha: the logistic curve, its ends cut off."""


def alpha_of(mask: NDArray[np.float32], fit: Fit, width: int, height: int) -> NDArray[np.uint8]:
    """(height, width) uint8 from a mask (rows, columns) float32, −1 to 1, over the network's whole input.

    The mask is enlarged before it becomes an alpha, because its zero line is then smooth between the cells, which an
    enlarged alpha shows.
    """
    rows, columns = mask.shape
    left, top, inner_width, inner_height = fit.cells(fit.width // columns)
    levels = np.rint((mask + 1) * np.float32(_LEVELS)).astype(np.uint8)
    if (left, top, inner_width, inner_height) == (0, 0, columns, rows):
        enlarged = cv2.resize(levels, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        step_x, step_y = inner_width / width, inner_height / height
        to_cells = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]])
        enlarged = cv2.warpAffine(
            levels,
            to_cells,
            (width, height),
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return np.asarray(cv2.LUT(enlarged, _STEEPER), np.uint8)
