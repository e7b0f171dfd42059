"""A large image through a grid of square cells: think on the small copy, work at full size strip by strip.

A whole number of pixels to a cell makes a strip enlarged on its own the same as that strip of the enlarged whole, so
that nothing of full size is held beside the picture itself, and a strip stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Sample = TypeVar("Sample", np.uint8, np.float32)

_STRIP_PIXELS = 1 << 17
_LEAST_CELLS = 4
"""A strip is enlarged with one more cell above and below, so it should not be lower than a few of them."""


@dataclass(frozen=True)
class Grid:
    """Cells of `factor` × `factor` pixels over an image of `height` × `width`."""

    height: int
    width: int
    factor: int

    @property
    def size_wh(self) -> tuple[int, int]:
        """Columns and rows of whole cells, at least one; what is left over at the right and below counts as theirs."""
        return max(1, self.width // self.factor), max(1, self.height // self.factor)

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mean of each cell: (height, width[, C]) uint8 → (rows, columns[, C]) uint8."""
        if self.factor == 1:
            return image
        columns, rows = self.size_wh
        whole_cells = image[: rows * self.factor, : columns * self.factor]
        return np.asarray(cv2.resize(whole_cells, self.size_wh, interpolation=cv2.INTER_AREA), np.uint8)

    def strips(self) -> Iterator[slice]:
        """Rows of the image, some rows of cells at a time."""
        cells = max(_LEAST_CELLS, _STRIP_PIXELS // (self.width * self.factor))
        for top in range(0, self.height, cells * self.factor):
            yield slice(top, min(top + cells * self.factor, self.height))

    def padded(self, small: NDArray[Sample]) -> NDArray[Sample]:
        """A small copy as `enlarge` takes it: with its border repeated around it."""
        return np.asarray(cv2.copyMakeBorder(small, 1, 2, 1, 2, cv2.BORDER_REPLICATE), small.dtype)

    def enlarge(self, padded: NDArray[Sample], strip: slice) -> NDArray[Sample]:
        """A strip of the bilinearly enlarged small copy, (strip's rows, width[, C]) of the copy's dtype."""
        k = self.factor
        first, last = strip.start // k, -(-strip.stop // k)
        piece = padded[first : last + 2]
        if k > 1:
            piece = np.asarray(cv2.resize(piece, (piece.shape[1] * k, piece.shape[0] * k)), piece.dtype)
        return piece[k : k + strip.stop - strip.start, k : k + self.width]
