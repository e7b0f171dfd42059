"""The letterbox is Ultralytics' own, to the pixel, and boxes find their way back."""

from __future__ import annotations

import numpy as np
import pytest
from pipeline.letterbox import GREY, letterbox, place


@pytest.mark.parametrize(
    ("width", "height", "inner"),
    [
        (640, 640, (0, 0, 640, 640)),
        (1280, 720, (0, 140, 640, 360)),
        (720, 1280, (140, 0, 360, 640)),
        (1155, 866, (0, 80, 640, 480)),
        (333, 500, (107, 0, 426, 640)),
        (64, 64, (0, 0, 640, 640)),
        (7680, 64, (0, 317, 640, 5)),
    ],
)
def test_placement(width: int, height: int, inner: tuple[int, int, int, int]) -> None:
    square, placement = letterbox(np.full((height, width, 3), 7, np.uint8))
    left, top, inner_width, inner_height = inner
    expected = np.full((640, 640, 3), GREY, np.uint8)
    expected[top : top + inner_height, left : left + inner_width] = 7
    assert np.array_equal(square, expected)
    assert (placement.left, placement.top) == (left, top)


@pytest.mark.parametrize("size", [(500, 333), (1155, 866), (97, 1000)])
def test_boxes_come_back(size: tuple[int, int]) -> None:
    placement = place(*size)
    rng = np.random.default_rng(3)
    corners = np.sort(rng.uniform(0, 1, (20, 2, 2)), axis=1) * size
    boxes = corners.reshape(-1, 4).astype(np.float32)
    offset, scale = np.array([placement.left, placement.top] * 2), np.array([placement.scale_x, placement.scale_y] * 2)
    there = (boxes * scale + offset).astype(np.float32)
    assert placement.to_picture(there) == pytest.approx(boxes, abs=1e-2)


@pytest.mark.parametrize("size", [(500, 333), (1155, 866), (97, 1000), (640, 640), (7680, 64)])
def test_a_picture_fills_its_place_to_the_edge(size: tuple[int, int]) -> None:
    """Resizing rounds to whole pixels, differently across and down: the far corner is still the picture's corner."""
    square, placement = letterbox(np.zeros((size[1], size[0], 3), np.uint8))
    rows, columns = np.nonzero((square != GREY).all(axis=2))
    there = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
    # Far outside the picture clipping would hide a scale that is too small, so half of the box is looked at, too.
    middle = np.array([[there[0, 0], there[0, 1], there[0, [0, 2]].mean(), there[0, [1, 3]].mean()]], np.float32)
    assert placement.to_picture(there) == pytest.approx(np.array([[0, 0, *size]]), abs=1e-2)
    assert placement.to_picture(middle) == pytest.approx(np.array([[0, 0, size[0] / 2, size[1] / 2]]), abs=1e-2)


def test_boxes_are_clipped_to_the_picture() -> None:
    placement = place(1280, 720)
    box = np.array([[-50, 0, 700, 640]], np.float32)
    assert placement.to_picture(box).tolist() == [[0, 0, 1280, 720]]
