"""Values sampled strip by strip are those of the enlarged small copy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pipeline.grid import Grid, cell_means
from pipeline.pixels import strips


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [(100, 90), (701, 333), (40, 1000), (1, 5), (5, 1), (6, 6)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_sampling(factor: int, size: tuple[int, int], channels: tuple[int, ...]) -> None:
    grid = Grid(*size, factor)
    rng = np.random.default_rng(0)
    small = rng.uniform(0, 1, (*grid.size_wh[::-1], *channels)).astype(np.float32)
    padded = cv2.copyMakeBorder(small, 9, 9, 9, 9, cv2.BORDER_REPLICATE)
    whole = cv2.resize(padded, (padded.shape[1] * factor, padded.shape[0] * factor))
    expected = whole[9 * factor : 9 * factor + size[0], 9 * factor : 9 * factor + size[1]]
    rows = 0
    for strip in strips(*size, 4000):
        assert strip.start == rows
        rows = strip.stop
        part = expected[strip].reshape(-1, *channels)
        at = np.flatnonzero(rng.uniform(0, 1, len(part)) < 0.5)
        if at.size:
            # OpenCV's remap knows 32 places between two pixels.
            assert grid.sample([small], strip, at)[0] == pytest.approx(part[at], abs=0.04)
    assert rows == size[0]


@pytest.mark.parametrize(("factor", "roundings"), [(5, 1), (2, 1), (6, 2), (8, 3)])
def test_shrinking_takes_means_of_cells(factor: int, roundings: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (35, 53, 3), np.uint8)
    small = Grid(35, 53, factor).shrink(image)
    rows, columns = 35 // factor, 53 // factor
    cells = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    assert small.shape == (rows, columns, 3)
    error = small - cells.mean(axis=(1, 3))
    assert np.abs(error).max() <= 0.51 * roundings
    assert abs(error.mean()) < 0.14 * roundings  # OpenCV rounds half a level up


@pytest.mark.parametrize(("size", "factor"), [((3000, 1000), 3), ((3001, 997), 7), ((700, 5000), 40), ((3, 4000), 5)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_shrinking_by_bands_is_shrinking(size: tuple[int, int], factor: int, channels: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, *channels), np.uint8)
    assert np.array_equal(Grid(*size, factor).shrink(image), cell_means(image, factor))
