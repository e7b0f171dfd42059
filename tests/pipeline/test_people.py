"""Who is cut out: order, choice, given boxes; and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import InvalidOption
from cutaway.contract.options import CutOptions, parse_options
from pipeline.crop import crop_rect
from pipeline.detect import Detections
from pipeline.geometry import Rect
from pipeline.letterbox import place
from pipeline.people import Person, choose, from_boxes, rank

FRAME = Rect(0, 0, 640, 480)


def found(*rows: tuple[float, float, float, float, float]) -> Detections:
    """Detections from rows of x1, y1, x2, y2, score."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    masks = np.zeros((len(table), 160, 160), np.float32)
    return Detections(table[:, :4], table[:, 4], masks, place(640, 480))


def options(**given: Any) -> CutOptions:
    return parse_options(given)


def test_largest_first_and_equal_areas_by_score() -> None:
    people = rank(found((0, 0, 10, 10, 0.9), (0, 0, 20, 5, 0.8), (5, 5, 105, 105, 0.7), (50, 50, 60, 60, 0.6)))
    assert [person.detection for person in people] == [2, 0, 1, 3]
    assert [person.id for person in people] == [0, 1, 2, 3]
    assert people[0].box == (5, 5, 105, 105)


def people(*scores: float) -> list[Person]:
    return [Person(index, (0, 0, 10, 10), score, index) for index, score in enumerate(scores)]


def test_selection_keeps_the_order_of_size() -> None:
    chosen, _ = choose(people(0.9, 0.8, 0.7), options(select=[2, 0]))
    assert [person.id for person in chosen] == [0, 2]


@pytest.mark.parametrize("select", [[3], [0, 7]])
def test_an_id_that_is_not_there(select: list[int]) -> None:
    with pytest.raises(InvalidOption) as caught:
        choose(people(0.9, 0.8, 0.7), options(select=select))
    assert caught.value.details["name"] == "select"
    assert caught.value.details["allowed"] == "ids 0 to 2"


def test_more_people_than_wanted_are_left_out_and_said() -> None:
    everybody, nothing = choose(people(0.9, 0.9, 0.9), options(max_people=2))
    assert len(everybody) == 3, "only 'each' makes a picture of each"
    assert nothing == []
    chosen, notices = choose(people(0.9, 0.9, 0.9), options(subject="each", max_people=2))
    assert [person.id for person in chosen] == [0, 1]
    assert [(notice.code, notice.details) for notice in notices] == [("PEOPLE_LEFT_OUT", {"found": 3, "max_people": 2})]


def test_unsure_people_are_said() -> None:
    _, notices = choose(people(0.9, 0.49, 0.5), options())
    assert [(notice.code, notice.details["ids"]) for notice in notices] == [("LOW_CONFIDENCE", [1])]


def test_given_boxes_borrow_the_detection_that_overlaps_them() -> None:
    detections = found((100, 100, 200, 300, 0.8), (110, 100, 200, 300, 0.6))
    given = from_boxes(((105, 100, 200, 300), (300, 10, 350, 60)), detections, FRAME)
    assert [(person.id, person.box, person.detection) for person in given] == [
        (0, (105, 100, 200, 300), 0),
        (1, (300, 10, 350, 60), None),
    ]
    assert [person.confidence for person in given] == [pytest.approx(0.8), 1.0]


def test_given_boxes_are_clipped_and_ranked() -> None:
    given = from_boxes(((-50, -50, 20, 20), (600, 400, 900, 900)), found(), FRAME)
    assert [person.box for person in given] == [(600, 400, 640, 480), (0, 0, 20, 20)]


@pytest.mark.parametrize("box", [(640, 10, 700, 60), (-60, 10, -5, 60), (10, 480, 60, 500), (639.5, 10, 700, 60)])
def test_a_box_outside_the_picture(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InvalidOption) as caught:
        from_boxes((box,), found(), FRAME)
    assert caught.value.details["name"] == "boxes"


# -------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((200, 200, 300, 300), Rect(190, 190, 310, 310)),  # a tenth on each side
        ((200, 100, 220, 300), Rect(150, 80, 270, 320)),  # at least half as wide as high
        ((0, 0, 100, 100), Rect(0, 0, 110, 110)),  # within the picture
        ((50, 10, 600, 470), FRAME),  # fills it
    ],
)
def test_crops_have_context(box: tuple[float, float, float, float], expected: Rect) -> None:
    assert crop_rect(box, FRAME) == expected
