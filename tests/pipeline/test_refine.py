"""What is whose, and how a small matte becomes a large alpha."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline.detect import Detections
from pipeline.geometry import Rect, whole
from pipeline.letterbox import place
from pipeline.people import Person
from pipeline.refine import Gate, feather, feather_reach_px, gate, put_back

SIDE = 640
FRAME = whole(SIDE, SIDE)


def detections(*masks: NDArray[np.float32]) -> Detections:
    """People of a 640×640 picture, whose boxes are where their logits (160, 160) are above 0."""
    boxes = []
    for mask in masks:
        x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
        boxes.append((4 * x, 4 * y, 4 * (x + width), 4 * (y + height)))
    return Detections(
        np.array(boxes, np.float32), np.full(len(masks), 0.9, np.float32), np.stack(masks), place(SIDE, SIDE)
    )


def bar(left: int, right: int, inside: float = 8.0) -> NDArray[np.float32]:
    """Logits of somebody between two columns of prototypes, from row 20 to 140."""
    mask = np.full((160, 160), -8.0, np.float32)
    mask[20:140, left:right] = inside
    return mask


def people(found: Detections) -> list[Person]:
    return [
        Person(index, tuple(map(float, box)), 0.9, index)  # type: ignore[arg-type]
        for index, box in enumerate(found.boxes)
    ]


def at(grid: NDArray[np.generic], x: int, y: int = 320) -> float:
    """The value of a grid over the picture at a pixel of it."""
    return float(grid[y * grid.shape[0] // SIDE, x * grid.shape[1] // SIDE])


def test_alone_everything_near_is_kept_and_nothing_far_away() -> None:
    found = detections(bar(60, 100))  # 240 to 400 px
    share = gate(people(found)[0], [], found, FRAME).share
    assert at(share, 320) == 1
    assert at(share, 400 + 8) == 1  # √(160·480) = 277 px: kept whole up to 14 px, gone after 36 px
    assert 0 < at(share, 400 + 22) < 1
    assert at(share, 400 + 60) == 0


def test_the_neighbours_are_kept_out() -> None:
    found = detections(bar(40, 80), bar(80, 120))
    left, right = people(found)
    mine = gate(left, [right], found, FRAME).share
    assert at(mine, 240) == 1
    assert at(mine, 340) < 0.01
    assert at(gate(left, [], found, FRAME).share, 328) > 0.9  # unless they are wanted as well


def test_who_is_in_front_is_left_to_the_matte_where_masks_are_unsure() -> None:
    found = detections(bar(40, 100, 2.0), bar(70, 120, 3.0))
    left, right = people(found)
    shares = [gate(left, [right], found, FRAME).share, gate(right, [left], found, FRAME).share]
    assert [at(share, 340) > 0.9 for share in shares] == [True, True]


def test_among_others_a_person_keeps_what_the_mask_is_sure_of() -> None:
    found = detections(bar(40, 80), bar(80, 120))
    among = gate(people(found)[0], [people(found)[1]], found, FRAME)
    empty, grey = np.zeros((96, 96), np.uint8), np.full((SIDE, SIDE, 3), 90, np.uint8)
    alpha = put_back(empty, among, grey)
    assert alpha[320, 240] == 255
    assert alpha[320, 400] == 0
    assert put_back(empty, gate(people(found)[0], [], found, FRAME), grey).max() == 0


def test_a_given_box_without_a_detection_owns_what_is_in_it() -> None:
    person = Person(0, (200.0, 100.0, 300.0, 400.0), 1.0, None)
    share = gate(person, [], detections(bar(100, 120)), FRAME).share
    assert at(share, 250, 250) == 1
    assert at(share, 250, 600) == 0


def test_islands_are_not_the_persons() -> None:
    """Three things in a matte: one under the mask, one joined to it, one apart; the gate would let all pass."""
    matte = np.zeros((96, 96), np.uint8)
    matte[20:80, 30:50] = 255
    matte[40:44, 50:66] = 255
    matte[60:70, 70:80] = 255
    inside = np.zeros((96, 96), bool)
    inside[25:75, 32:48] = True
    alpha = put_back(matte, Gate(inside, np.ones((96, 96), np.float32)), np.zeros((96, 96, 3), np.uint8))
    assert alpha[50, 40] == alpha[42, 60] == 255
    assert alpha[55:75, 68:85].max() == 0


def test_specks_are_dropped_even_under_a_generous_mask() -> None:
    """The instance mask holds everything: a faint speck and a bright one far off go; a lock of hair, close by, and an
    arm behind a pole stay."""
    matte = np.zeros((96, 96), np.uint8)
    matte[20:80, 30:50] = 255
    matte[10:13, 70:73] = 40
    matte[80:82, 80:82] = 255
    matte[16:18, 38:40] = 200
    matte[40:60, 60:64] = 255
    everything = Gate(np.ones((96, 96), bool), np.ones((96, 96), np.float32))
    alpha = put_back(matte, everything, np.zeros((96, 96, 3), np.uint8))
    assert alpha[50, 40] == alpha[50, 62] == 255
    assert alpha[17, 39] > 190
    assert alpha[5:18, 65:78].max() == alpha[76:86, 76:86].max() == 0


@pytest.mark.parametrize("size", [(96, 96), (300, 180), (50, 70)])
def test_without_a_gate_the_matte_is_enlarged(size: tuple[int, int]) -> None:
    matte = np.zeros((96, 96), np.uint8)
    matte[:, 48:] = 255
    alpha = put_back(matte, None, np.zeros((*size, 3), np.uint8))
    assert alpha.shape == size
    assert (alpha[:, : size[1] // 2 - 4] == 0).all()
    assert (alpha[:, size[1] // 2 + 4 :] == 255).all()


def test_what_is_enlarged_much_follows_the_pictures_edge() -> None:
    """The matte is eight times smaller, and its edge four of its pixels wide where the picture's is sharp.

    Steeper slopes would halve the error here, and made held-out hair and people's outlines worse (`GUIDE_RADIUS_PX`).
    """
    picture = np.full((512, 512, 3), 40, np.uint8)
    picture[:, 256:] = 210
    matte = np.zeros((64, 64), np.uint8)
    matte[:, 32:] = 255
    matte = cv2.GaussianBlur(matte, (0, 0), 2)
    plain = cv2.resize(matte, (512, 512))
    alpha = put_back(matte, None, picture)
    truth = np.where(picture[..., 0] > 100, 255, 0)
    assert np.abs(alpha.astype(int) - truth).mean() < 0.9 * np.abs(plain.astype(int) - truth).mean()
    assert (np.diff(alpha.astype(int), axis=1)[:, 255] > 20).all(), "the step is where the picture's is"


def test_nearly_nothing_is_nothing_and_nearly_all_is_all() -> None:
    matte = np.tile(np.array([0, 4, 250, 255], np.uint8), (64, 16))
    alpha = put_back(matte, None, np.zeros((64, 64, 3), np.uint8))
    assert set(np.unique(alpha)) == {0, 255}


@pytest.mark.parametrize("feather_px", [1, 7, 50])
def test_feathering_reaches_as_far_as_is_said(feather_px: int) -> None:
    alpha = np.zeros((401, 401), np.uint8)
    alpha[:, 200:] = 255
    soft = feather(alpha, feather_px)
    reach = feather_reach_px(feather_px) + 1
    assert soft[:, : 200 - reach].max() <= 1
    assert soft[:, 200 + reach :].min() >= 254
    assert np.array_equal(feather(alpha, 0), alpha)


def test_a_rectangle_beside_everybody() -> None:
    found = detections(bar(60, 100))
    share = gate(people(found)[0], [], found, Rect(560, 0, 640, 80)).share
    assert share.max() == 0
