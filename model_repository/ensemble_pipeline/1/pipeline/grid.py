"""A large image through a grid of square cells: think on the small copy, work at full size only where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_STRIP_PIXELS = 1 << 18
_COLUMNS = 1024
"""Points go through OpenCV in rows of this many, since it limits a row's length."""
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="strips")


@dataclass(frozen=True)
class Grid:
    """Cells of `factor` × `factor` pixels over an image of `height` × `width`."""

    height: int
    width: int
    factor: int

    @property
    def size_wh(self) -> tuple[int, int]:
        """Columns and rows of whole cells, at least one; what is left over at the right and below has none."""
        return max(1, self.width // self.factor), max(1, self.height // self.factor)

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mean of each cell: (height, width[, C]) uint8 → (rows, columns[, C]) uint8."""
        if self.factor == 1:
            return image
        columns, rows = self.size_wh
        whole_cells = image[: rows * self.factor, : columns * self.factor]
        return np.asarray(cv2.resize(whole_cells, self.size_wh, interpolation=cv2.INTER_AREA), np.uint8)

    def strips(self) -> Iterator[slice]:
        """Rows of the image, some at a time, so that what is computed for many pixels stays small."""
        rows = max(1, _STRIP_PIXELS // self.width)
        for top in range(0, self.height, rows):
            yield slice(top, min(top + rows, self.height))

    def each_strip(self, work: Callable[[slice], None]) -> None:
        """Do something to each strip, to two of them at a time: numpy and OpenCV let other threads work meanwhile."""
        for _ in _THREADS.map(work, self.strips()):
            pass

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
