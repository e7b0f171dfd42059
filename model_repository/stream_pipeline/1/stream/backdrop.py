"""A stream's background, and compositing its people onto it."""

from __future__ import annotations

import cv2
import numpy as np
from cutaway.contract.options import StreamOptions
from numpy.typing import NDArray
from pipeline import composite
from pipeline.decode import decode
from pipeline.geometry import whole


class Backdrop:
    """One stream's background, at the size of its frames.

    Args:
        options: the stream's.
        picture: the file that came with the first frame, or None.

    Raises:
        InputError: the file is no supported picture.
    """

    def __init__(self, options: StreamOptions, picture: bytes | None) -> None:
        self._blur_px = options.background.blur_px
        self._swap = options.channels == "bgr"
        colour = options.background.colour_rgb
        self._colour = colour[::-1] if colour is not None and self._swap else colour
        self._ready: NDArray[np.uint8] | None = None if picture is None else decode(picture).rgb
        if self._ready is not None and self._swap:
            self._ready = np.asarray(cv2.cvtColor(self._ready, cv2.COLOR_RGB2BGR), np.uint8)

    def fit(self, width: int, height: int) -> None:
        """Make the background for frames of this size, and keep no other: a picture may have 33 megapixels."""
        if self._blur_px is not None or (self._ready is not None and self._ready.shape[:2] == (height, width)):
            return
        if self._colour is not None:
            self._ready = composite.solid(self._colour, whole(width, height))
        elif self._ready is not None:
            self._ready = cover(self._ready, width, height)

    def behind(self, frame: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The background of a frame, (H, W, 3) uint8, read-only."""
        height, width = alpha.shape
        if self._blur_px is not None:
            area = whole(width, height)
            return composite.blurred(frame, alpha, area, area, self._blur_px)
        self.fit(width, height)
        assert self._ready is not None
        return self._ready


def cover(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """A picture (h, w, 3) uint8 at the frame's size, cropped to its aspect ratio around the centre."""
    scale = max(width / picture.shape[1], height / picture.shape[0])
    cut_width, cut_height = min(picture.shape[1], round(width / scale)), min(picture.shape[0], round(height / scale))
    left, top = (picture.shape[1] - cut_width) // 2, (picture.shape[0] - cut_height) // 2
    part = picture[top : top + cut_height, left : left + cut_width]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (width, height), interpolation=interpolation), np.uint8)


def put_before(frame: NDArray[np.uint8], alpha: NDArray[np.uint8], behind: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite a frame's people, by their alpha (H, W) uint8, onto a background (H, W, 3) uint8; a new array.

    Both products are rounded to uint8: exact where the alpha is 0 or 255, in a twentieth of the time that numpy takes
    for the soft pixels alone.
    """
    weight = cv2.merge((alpha, alpha, alpha))
    people = cv2.multiply(frame, weight, scale=1 / 255)
    rest = cv2.multiply(behind, cv2.bitwise_not(weight), scale=1 / 255)
    return np.asarray(cv2.add(people, rest), np.uint8)
