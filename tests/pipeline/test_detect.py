"""Suppression against a reference written out naively; candidates that are no people never get through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline.detect import iou, non_maximum_suppression, read_detections
from pipeline.letterbox import place


def naive_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def naive_suppression(boxes: NDArray[np.float32], scores: NDArray[np.float32], max_iou: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(naive_iou(boxes[index], boxes[other]) <= max_iou for other in kept):
            kept.append(index)
    return kept


def random_boxes(seed: int, count: int = 120) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 300, (count, 2)), rng.uniform(40, 200, (count, 2))
    boxes = np.hstack([corner, corner + size]).astype(np.float32)
    return boxes, rng.choice(np.linspace(0.1, 0.9, 30), count).astype(np.float32)  # with equal scores among them


@pytest.mark.parametrize("max_iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_suppression_is_that_of_the_reference(seed: int, max_iou: float) -> None:
    boxes, scores = random_boxes(seed)
    kept = non_maximum_suppression(boxes, scores, max_iou)
    assert kept.tolist() == naive_suppression(boxes, scores, max_iou)
    assert 1 < len(kept) < len(boxes)


def test_overlap_is_that_of_the_reference() -> None:
    boxes, _ = random_boxes(9, 20)
    expected = [[naive_iou(a, b) for b in boxes] for a in boxes]
    assert iou(boxes, boxes) == pytest.approx(np.array(expected), abs=1e-6)


def test_suppression_of_nothing() -> None:
    assert non_maximum_suppression(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.7).size == 0


def candidates(*rows: tuple[tuple[float, float, float, float], float, int]) -> dict[str, NDArray[Any]]:
    """The detector's outputs for a 640×640 picture; the first coefficient counts the rows from 1."""
    raw: dict[str, NDArray[Any]] = {
        "boxes": np.zeros((300, 4), np.float32),
        "scores": np.zeros(300, np.float32),
        "classes": np.zeros(300, np.int32),
        "coefficients": np.zeros((300, 32), np.float32),
        "prototypes": np.ones((32, 160, 160), np.float32),
    }
    for index, (box, score, kind) in enumerate(rows):
        raw["boxes"][index], raw["scores"][index], raw["classes"][index] = box, score, kind
        raw["coefficients"][index, 0] = index + 1
    return raw


def test_only_people_from_the_score_on() -> None:
    raw = candidates(
        ((10, 10, 110, 210), 0.35, 0),
        ((300, 10, 400, 210), 0.34, 0),
        ((300, 300, 400, 500), 0.9, 16),  # a dog
        ((500, 300, 600, 500), 0.9, 0),
        ((501, 301, 601, 501), 0.8, 0),  # the same person once more
    )
    found = read_detections(raw, place(640, 640), float(np.float32(0.35)))
    assert found.scores == pytest.approx([0.9, 0.35])
    assert found.boxes.tolist() == [[500, 300, 600, 500], [10, 10, 110, 210]]
    assert found.masks[:, 0, 0].tolist() == [4, 1]


@pytest.mark.parametrize(
    "box",
    [
        (100, 100, 100, 200),
        (200, 100, 100, 200),
        (float("nan"), 1, 2, 3),
        (0, 0, float("inf"), 9),
        (10, 10, 60, 100),  # in the grey margin of a wide picture
    ],
)
def test_boxes_that_are_none(box: tuple[float, float, float, float]) -> None:
    found = read_detections(candidates((box, 0.9, 0)), place(1280, 640), 0.3)
    assert len(found.boxes) == 0
    assert found.masks.shape == (0, 160, 160)
