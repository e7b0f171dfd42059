"""Temporal smoothing of a video's masks, weighted by motion.

A mask flickers although nothing moves, because of the camera's noise. Averaging over time removes the flicker, and
leaves ghosts behind people who move. So each cell is averaged only as far as the *picture* has not changed there:
where it changed, the new mask has the full weight.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from stream.tuning import MOTION_FROM, MOTION_FULL, MOTION_REACH_CELLS, NOISE_LEAST, NOISE_MOST

_STILL_SHARE = 0.25
"""At least a quarter of the frame is static or flat; the noise is estimated from that quarter's differences."""
_SHARE_TO_DEVIATION = 3.138
"""The normal distribution's standard deviation as a multiple of that quantile of its absolute values."""
_REACH = np.ones((2 * MOTION_REACH_CELLS + 1, 2 * MOTION_REACH_CELLS + 1), np.uint8)


class Smoother:
    """The smoothed mask of one stream.

    Args:
        strength: 0 is no smoothing; with 1 the mask does not change where the picture does not.
    """

    def __init__(self, strength: float) -> None:
        self._least = 1.0 - strength
        self._mask: NDArray[np.float32] | None = None
        self._grey: NDArray[np.float32] | None = None

    def next(self, mask: NDArray[np.float32], small: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The smoothed mask of the next frame.

        Args:
            mask: (rows, columns) float32.
            small: (rows, columns, 3) uint8, the picture at the mask's size.
        """
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
        if self._mask is None or self._grey is None or self._mask.shape != mask.shape or self._least >= 1:
            self._mask, self._grey = mask, grey
            return mask
        gain = np.maximum(motion(grey, self._grey), np.float32(self._least))
        self._mask = self._mask + gain * (mask - self._mask)
        # The reference adapts to slow changes of light, and slow motion still accumulates to a change.
        self._grey = self._grey + gain * (grey - self._grey)
        return self._mask


def motion(grey: NDArray[np.float32], before: NDArray[np.float32]) -> NDArray[np.float32]:
    """The motion in each cell, 0 to 1: (rows, columns) float32 from two grey pictures, 0 to 255.

    The noise is estimated from the frame itself, within bounds, because the estimate is wrong where nearly everything
    moves or the light changes.
    """
    difference = np.abs(cv2.blur(grey - before, (3, 3), borderType=cv2.BORDER_REFLECT))
    place = int(difference.size * _STILL_SHARE)
    noise = _SHARE_TO_DEVIATION * float(np.partition(difference.ravel(), place)[place])
    noise = min(max(noise, NOISE_LEAST), NOISE_MOST)
    change = np.clip((difference / noise - MOTION_FROM) / (MOTION_FULL - MOTION_FROM), 0, 1)
    return np.asarray(cv2.dilate(change.astype(np.float32), _REACH), np.float32)
