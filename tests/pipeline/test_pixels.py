"""Pictures made strip by strip."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pipeline.pixels import Pixels, each_strip, strips


@pytest.mark.parametrize("size", [(1, 1), (3000, 1000), (5, 2_000_000), (2_000_000, 1)])
def test_strips_cover_every_row_once(size: tuple[int, int]) -> None:
    parts = list(strips(*size))
    assert parts[0].start == 0 and parts[-1].stop == size[0]
    assert all(first.stop == second.start for first, second in itertools.pairwise(parts))
    assert all(part.start < part.stop for part in parts)


@pytest.mark.parametrize("shape", [(1200, 900), (1200, 900, 3), (1200, 900, 4)])
def test_an_array_stays_what_it_is(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels = Pixels.of(array)
    assert (pixels.height, pixels.width, pixels.channels) == (1200, 900, shape[2] if len(shape) == 3 else 1)
    assert np.array_equal(pixels.array(), array)
    assert np.array_equal(pixels.rows(slice(7, 9)), array[7:9])


def test_each_strip_is_worked_on_once() -> None:
    seen = np.zeros(3000, np.int32)

    def work(strip: slice) -> None:
        seen[strip] += 1

    parts = list(strips(3000, 1000))
    each_strip(work, parts)
    assert len(parts) > 2
    np.testing.assert_array_equal(seen, 1)


def test_an_error_in_a_strip_comes_out() -> None:
    def work(strip: slice) -> None:
        if strip.start:
            raise MemoryError("no")

    with pytest.raises(MemoryError, match="no"):
        each_strip(work, strips(3000, 1000))
