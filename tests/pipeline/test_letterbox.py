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
    offset = np.array([placement.left, placement.top] * 2)
    there = (boxes * placement.scale + offset).astype(np.float32)
    assert placement.to_picture(there) == pytest.approx(boxes, abs=1e-2)


def test_boxes_are_clipped_to_the_picture() -> None:
    placement = place(1280, 720)
    box = np.array([[-50, 0, 700, 640]], np.float32)
    assert placement.to_picture(box).tolist() == [[0, 0, 1280, 720]]
