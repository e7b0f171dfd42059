"""Instance masks: upsampled first, cropped then, at the right place of any rectangle."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from pipeline.detect import Detections
from pipeline.geometry import Rect
from pipeline.letterbox import place
from pipeline.masks import OUTSIDE, mask_logits


def detections(mask: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> Detections:
    return Detections(
        np.array([box], np.float32), np.array([0.9], np.float32), mask[None].astype(np.float32), place(*size)
    )


def smooth_mask() -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.GaussianBlur(rng.normal(0, 40, (160, 160)).astype(np.float32), (0, 0), 5)


def test_the_whole_square_is_the_bilinear_enlargement() -> None:
    mask = smooth_mask()
    found = detections(mask, (0, 0, 640, 640), (640, 640))
    enlarged = cv2.resize(mask, (640, 640), interpolation=cv2.INTER_LINEAR)
    # OpenCV's affine warp knows 32 places between two pixels.
    assert mask_logits(found, [0], Rect(0, 0, 640, 640), (640, 640))[0] == pytest.approx(enlarged, abs=0.2)


def test_a_rectangle_is_cut_from_the_enlargement() -> None:
    """A picture of 1280×720 in its letterbox: prototypes are 8 picture pixels wide, 140 rows of margin above."""
    mask = smooth_mask()
    found = detections(mask, (0, 0, 1280, 720), (1280, 720))
    enlarged = cv2.resize(mask, (1280, 1280), interpolation=cv2.INTER_LINEAR)[280:1000]
    rect = Rect(200, 100, 520, 260)
    logits = mask_logits(found, [0], rect, (rect.width, rect.height))[0]
    assert logits == pytest.approx(enlarged[rect.slices], abs=0.2)


def test_upsampled_first_and_cropped_then() -> None:
    """The box ends between two prototypes; values up to its edge come from both, and nothing smears past it."""
    mask = np.full((160, 160), -8.0)
    mask[:, :40] = 8.0
    found = detections(mask, (10.0, 10.0, 161.0, 100.0), (640, 640))
    logits = mask_logits(found, [0], Rect(0, 0, 640, 640), (640, 640))[0]
    inside = np.zeros((640, 640), bool)
    inside[10:100, 10:161] = True
    assert (logits[~inside] == OUTSIDE).all()
    assert (logits[inside] > OUTSIDE).all()
    assert (logits[50, 10:158] == 8).all()
    assert logits[50, 160] == pytest.approx(-2, abs=0.6)  # five eighths of the way between two prototypes


def test_a_rectangle_beside_the_person_is_empty() -> None:
    found = detections(smooth_mask(), (10, 10, 60, 60), (640, 640))
    assert (mask_logits(found, [0], Rect(100, 100, 200, 200), (50, 50)) == OUTSIDE).all()


def test_nobody() -> None:
    found = detections(smooth_mask(), (10, 10, 60, 60), (640, 640))
    assert mask_logits(found, [], Rect(0, 0, 64, 64), (32, 16)).shape == (0, 16, 32)
