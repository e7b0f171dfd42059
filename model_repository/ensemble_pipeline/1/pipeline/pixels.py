"""Pictures that are computed lazily, strip by strip.

A cut-out of 12 megapixels is 48 MB, its colours alone 36 MB. Strip by strip they never exist as a whole: each
strip is computed, filtered and compressed while it is in a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Rows = Callable[[slice], NDArray[np.uint8]]
"""Rows of a picture, for a slice of whole numbers within it: (h, w) or (h, w, C) uint8. Called from several threads."""
Result = TypeVar("Result")

_map: Callable[..., Iterator[Any]] = ThreadPoolExecutor(2, thread_name_prefix="strips").map


@dataclass(frozen=True)
class Pixels:
    """A picture whose rows are computed when they are read.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: 1 (grey, rows are (h, w)), 3 (RGB) or 4 (RGBA, straight alpha).
        rows: computes them.
    """

    height: int
    width: int
    channels: int
    rows: Rows

    @classmethod
    def of(cls, array: NDArray[np.uint8]) -> Pixels:
        """Of an array (H, W) or (H, W, C) uint8."""
        height, width = array.shape[:2]
        return cls(height, width, 1 if array.ndim == 2 else array.shape[2], lambda part: array[part])

    def array(self) -> NDArray[np.uint8]:
        """The whole picture, (H, W) or (H, W, C) uint8."""
        whole = np.empty((self.height, self.width, self.channels)[: 2 if self.channels == 1 else 3], np.uint8)

        def make(part: slice) -> None:
            whole[part] = self.rows(part)

        each_strip(make, strips(self.height, self.width))
        return whole


def strips(height: int, width: int, pixels: int = 1 << 18) -> Iterator[slice]:
    """Slices of a picture's rows from the top, of about so many pixels and at least one row.

    With smaller strips two threads lose more by waiting for the interpreter lock than they gain from the cache.
    """
    rows = max(1, pixels // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def work_alone() -> None:
    """Compute strips in the thread that asks for them: where each core has a process of its own, others only wait."""
    global _map
    _map = map


def side_by_side(work: Callable[[slice], Result], parts: Iterable[slice]) -> Iterator[Result]:
    """The results of a function for each strip, in order; two at a time: numpy, OpenCV and ISA-L release the lock.

    The function must not call this itself: two threads would wait for each other.
    """
    return _map(work, parts)


def each_strip(work: Callable[[slice], None], parts: Iterable[slice]) -> None:
    """Call a function for each strip, two at a time."""
    for _ in side_by_side(work, parts):
        pass
