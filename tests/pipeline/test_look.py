"""Where the detector looks: slices of large pictures, and pictures turned; with stand-ins whose truth is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from cutaway.contract.errors import NoPersonDetected
from cutaway.contract.limits import MODEL_MAX_BATCH
from cutaway.contract.options import parse_options
from numpy.typing import NDArray
from pipeline.geometry import Rect
from pipeline.look import look, slices
from pipeline.matte import matte_crops
from pipeline.run import Answer, Models, run
from pipeline.tuning import MAX_OWN_CROPS

from tests.pipeline import stand_ins

SEEN_FROM_PX = 24
"""The stand-in detector overlooks whoever is smaller than this in its square."""


class Detector:
    """Finds flat colours of some size in pictures that stand as wanted, and remembers how many squares it was shown."""

    def __init__(self, upright_turns: int = 0) -> None:
        self.shown: list[int] = []
        self._upright_turns = upright_turns

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        self.shown.append(len(images))
        outputs = stand_ins.detector(images)
        sides = (outputs["boxes"][..., 2:] - outputs["boxes"][..., :2]).max(-1)
        outputs["scores"] = np.where(sides >= SEEN_FROM_PX, outputs["scores"], 0)
        for index, image in enumerate(images):
            # A white bar stands above whoever is upright.
            rows, columns = np.nonzero((image > 240).all(-1))
            if len(rows):
                turned = image.shape[0] / 2 < rows.mean() or np.ptp(rows) > np.ptp(columns)
                outputs["scores"][index] *= not turned
        return outputs


def cut(data: bytes, detector: Any, **options: Any) -> Answer:
    models = Models(detector, stand_ins.matter, stand_ins.SIDE, {}, "cpu")
    return run(data, parse_options(options), models)


def iou_of(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float((first & second).sum() / (first | second).sum())


# ---------------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize(
    "size_wh", [(7000, 1500), (1500, 7000), (4000, 3000), (8660, 5773), (7680, 4320), (2600, 300), (2561, 2561)]
)
def test_slices_cover_the_picture_in_one_batch(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    covered = np.zeros((height // 10 + 1, width // 10 + 1), int)
    rects = slices(width, height)
    assert len(rects) <= MODEL_MAX_BATCH
    for rect in rects:
        assert rect.within(Rect(0, 0, width, height)) == rect
        covered[rect.y1 // 10 : rect.y2 // 10 + 1, rect.x1 // 10 : rect.x2 // 10 + 1] += 1
    assert covered.min() >= 1


def small_people(width: int, height: int) -> NDArray[np.uint8]:
    return stand_ins.draw(width, height, [(200, 700, 40, 110), (width - 300, 400, 45, 120), (width // 2, 900, 30, 100)])


@pytest.mark.parametrize("size_wh", [(7000, 1500), (4200, 3000), (6000, 4000)])
def test_small_people_in_large_pictures_are_found_once_each(size_wh: tuple[int, int]) -> None:
    picture = small_people(*size_wh)
    detector = Detector()
    found = look(picture, detector, 0.35).detections
    assert len(found) == 3
    masks = [(np.abs(picture.astype(int) - colour).max(-1) < 9).astype(np.uint8) for colour in stand_ins.COLOURS]
    truth = np.array([cv2.boundingRect(mask) for mask in masks])
    truth[:, 2:] += truth[:, :2]
    order = np.argsort(found.boxes[:, 0])
    assert np.abs(found.boxes[order] - truth[np.argsort(truth[:, 0])]).max() < 12
    assert len(detector.shown) == 2, "one batch of slices"


def test_masks_of_slices_lie_where_the_people_are() -> None:
    picture = small_people(6000, 1500)
    answer = cut(stand_ins.as_png(picture), Detector(), output="mask")
    people = (picture != stand_ins.GREY).any(-1)
    assert iou_of(stand_ins.pixels_of(answer.images[0]) >= 128, people) > 0.95
    assert len(answer.report["people"]) == 3


def test_somebody_whom_slices_cut_in_two_is_one_person() -> None:
    """Large enough to be seen whole in the letterbox, and larger than what slices share."""
    picture = stand_ins.draw(6000, 4000, [(3000, 2000, 250, 780)])
    assert len(look(picture, Detector(), 0.35).detections) == 1


def test_pictures_that_need_no_slices_cost_none() -> None:
    for width, height, people in ((1000, 800, [(200, 300, 20, 60)]), (6000, 4000, [(3000, 2000, 900, 1800)])):
        detector = Detector()
        look(stand_ins.draw(width, height, people), detector, 0.35)  # type: ignore[arg-type]
        assert detector.shown == [1]


# ---------------------------------------------------------------------------------------------------- turned


def person_with_a_bar(quarter_turns: int) -> NDArray[np.uint8]:
    """Somebody in a picture that was turned clockwise, with a white bar above the head."""
    picture = stand_ins.draw(640, 480, [(300, 300, 60, 130)])
    picture[20:40, 200:400] = 255
    return np.ascontiguousarray(np.rot90(picture, -quarter_turns))


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_people_who_lie_are_found_in_the_pictures_own_frame(quarter_turns: int) -> None:
    picture = person_with_a_bar(quarter_turns)
    answer = cut(stand_ins.as_png(picture), Detector(), subject="each", output="mask", padding_px=0)
    (entry,) = answer.report["people"]
    rows, columns = np.nonzero(np.abs(picture.astype(int) - stand_ins.COLOURS[0]).max(-1) < 9)
    assert entry["box"] == pytest.approx([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=4)
    (warning,) = (each for each in answer.report["warnings"] if each["code"] == "PEOPLE_TURNED")
    assert warning["details"] == {"degrees": 90 * quarter_turns}
    x1, y1, x2, y2 = answer.report["cutouts"][0]["frame"]
    truth = np.zeros(picture.shape[:2], bool)
    truth[rows, columns] = True
    assert iou_of(stand_ins.pixels_of(answer.images[0]) >= 128, truth[y1:y2, x1:x2]) > 0.93


def test_the_matting_network_sees_turned_people_upright() -> None:
    picture = person_with_a_bar(1)
    seen: list[NDArray[np.uint8]] = []

    def matter(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen.extend(images)
        return stand_ins.matter(images)

    run(stand_ins.as_png(picture), parse_options({}), Models(Detector(), matter, 96, {}, "cpu"))
    (crop,) = seen
    rows, columns = np.nonzero(np.abs(crop.astype(int) - stand_ins.COLOURS[0]).max(-1) < 9)
    upright = run(stand_ins.as_png(person_with_a_bar(0)), parse_options({}), Models(Detector(), matter, 96, {}, "cpu"))
    assert upright.report["people"]
    rows_upright, columns_upright = np.nonzero(np.abs(seen[1].astype(int) - stand_ins.COLOURS[0]).max(-1) < 9)
    assert (np.ptp(rows), np.ptp(columns)) == pytest.approx((np.ptp(rows_upright), np.ptp(columns_upright)), abs=3)


def test_nobody_is_nobody_in_every_turn() -> None:
    with pytest.raises(NoPersonDetected):
        cut(stand_ins.picture(640, 480, []), Detector())


# ---------------------------------------------------------------------------------------------- many people


def test_more_people_than_own_crops_share_the_pictures_matte() -> None:
    picture = np.full((800, 800, 3), stand_ins.GREY, np.uint8)
    rects = [Rect(x, y, x + 60, y + 60) for y in range(0, 720, 72) for x in range(0, 720, 72)]
    for rect in rects:
        picture[rect.y1 + 10 : rect.y2 - 10, rect.x1 + 10 : rect.x2 - 10] = 20
    calls: list[int] = []

    def matter(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        calls.append(len(images))
        return stand_ins.matter(images)

    mattes = matte_crops(picture, rects, matter, 320)
    assert len(rects) == 100
    assert set(mattes) >= set(rects)
    assert sum(calls) == MAX_OWN_CROPS
    expected = np.zeros((320, 320), bool)
    expected[53:267, 53:267] = True
    for rect in (rects[0], rects[-1]):
        assert iou_of(mattes[rect] >= 128, expected) > 0.85, rect
