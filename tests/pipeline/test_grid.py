"""A strip enlarged on its own is that strip of the enlarged whole."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pipeline import grid as module
from pipeline.grid import Grid


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [(100, 90), (701, 333), (40, 1000), (1, 5), (5, 1), (6, 6)])
def test_strips(factor: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRIP_PIXELS", 4000)
    grid = Grid(*size, factor)
    small = np.random.default_rng(0).normal(0, 1, grid.size_wh[::-1]).astype(np.float32)
    padded = cv2.copyMakeBorder(small, 9, 9, 9, 9, cv2.BORDER_REPLICATE)
    whole = cv2.resize(padded, (padded.shape[1] * factor, padded.shape[0] * factor))
    expected = whole[9 * factor : 9 * factor + size[0], 9 * factor : 9 * factor + size[1]]
    strips = list(grid.strips())
    result = np.vstack([grid.enlarge(grid.padded(small), strip) for strip in strips])
    assert result == pytest.approx(expected, abs=1e-5)
    assert (len(strips) > 1) == (size[0] > strips[0].stop)


def test_shrinking_takes_means_of_cells() -> None:
    image = np.random.default_rng(0).integers(0, 256, (35, 53, 3), np.uint8)
    small = Grid(35, 53, 5).shrink(image)
    means = image[:, :50].reshape(7, 5, 10, 5, 3).mean(axis=(1, 3))
    assert small.shape == (7, 10, 3)
    assert np.abs(small - means).max() <= 0.51
