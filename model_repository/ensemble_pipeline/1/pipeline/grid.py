"""A large image on a grid of square cells: compute on the small copy, and at full size only where needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.pixels import each_strip, strips

_COLUMNS = 1024
"""Points go through OpenCV in rows of this many, since it limits a row's length."""


def cell_means(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The mean of each whole cell of `factor` × `factor` pixels: (h, w[, C]) uint8 → (rows, columns[, C]) uint8.

    There is at least one cell, however small the image. By halves as far as that goes: OpenCV has vector code for
    those alone, and takes eight times as long for a quarter.
    """
    rows, columns = (max(1, length // factor) for length in image.shape[:2])
    cells = image[: rows * factor, : columns * factor]
    while factor % 2 == 0 and not any(length % 2 for length in cells.shape[:2]):
        cells = _area(cells, cells.shape[1] // 2, cells.shape[0] // 2)
        factor //= 2
    return cells if factor == 1 else _area(cells, columns, rows)


def _area(image: NDArray[np.uint8], columns: int, rows: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True)
class Grid:
    """Cells of `factor` × `factor` pixels over an image of `height` × `width`."""

    height: int
    width: int
    factor: int

    @property
    def size_wh(self) -> tuple[int, int]:
        """Columns and rows of whole cells, at least one; the remainder at the right and below has none."""
        return max(1, self.width // self.factor), max(1, self.height // self.factor)

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mean of each cell: (height, width[, C]) uint8 → (rows, columns[, C]) uint8."""
        if self.factor == 1:
            return image
        columns, rows = self.size_wh
        small = np.empty((rows, columns, *image.shape[2:]), np.uint8)

        def band(part: slice) -> None:
            small[part] = cell_means(image[part.start * self.factor : part.stop * self.factor], self.factor)

        # In parallel here, because OpenCV does so by the size of its output and the cost is reading the input.
        each_strip(band, strips(rows, self.width * self.factor))
        return small

    def sample(
        self, copies: Sequence[NDArray[np.float32]], strip: slice, at: NDArray[np.intp]
    ) -> list[NDArray[np.float32]]:
        """Bilinear values of small copies at some pixels of a strip.

        Args:
            copies: (rows, columns[, C]) float32 each.
            strip: rows of the image.
            at: (N,) flat indices of pixels within the strip, at least one.

        Returns:
            (N[, C]) float32 each.
        """
        points = -(-at.size // _COLUMNS), _COLUMNS
        map_x, map_y = np.zeros(points, np.float32), np.zeros(points, np.float32)
        # Half as wide as numpy's own indices, and without its remainder: three times as fast.
        flat = at.astype(np.int32)
        y = flat // np.int32(self.width)
        x = flat - y * np.int32(self.width)
        scale, shift = np.float32(1 / self.factor), np.float32(0.5 / self.factor - 0.5)  # centre to centre
        map_x.reshape(-1)[: at.size] = x * scale + shift
        map_y.reshape(-1)[: at.size] = (y + strip.start) * scale + shift
        results = []
        for small in copies:
            values = cv2.remap(small, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            results.append(np.asarray(values, np.float32).reshape(-1, *small.shape[2:])[: at.size])
        return results
