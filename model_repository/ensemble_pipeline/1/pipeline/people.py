"""Detections and options → the people to cut out, largest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cutaway.contract.errors import InvalidOption, NoPersonDetected
from cutaway.contract.limits import LOW_CONFIDENCE
from cutaway.contract.options import CutOptions

from pipeline.detect import Detections, iou
from pipeline.geometry import Box, Rect
from pipeline.notices import Notice
from pipeline.tuning import GIVEN_BOX_IOU

TIPS = (
    "Faces should be visible.",
    "The light should be good.",
    "The picture should have at least 640×480 pixels.",
)


@dataclass(frozen=True)
class Person:
    """A person in the picture.

    Attributes:
        id: rank by the box's area, 0 the largest.
        box: the detection box, or the box that the caller gave, within the picture.
        confidence: the detector's score; 1.0 for a given box without a detection.
        detection: index among the detections, or None for a given box without one.
    """

    id: int
    box: Box
    confidence: float
    detection: int | None


def rank(detections: Detections) -> list[Person]:
    """All detected people, by area, largest first; equal areas in the order of their scores."""
    boxes = detections.boxes.astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-areas, kind="stable")
    return [
        Person(rank, _box(boxes[index]), float(detections.scores[index]), int(index))
        for rank, index in enumerate(order)
    ]


def from_boxes(given: tuple[Box, ...], detections: Detections, frame: Rect) -> list[Person]:
    """Given boxes as people, each with the detection that overlaps it most, if one does.

    Raises:
        InvalidOption: a box lies outside the picture.
    """
    clipped = [_within(box, frame) for box in given]
    areas = np.array([(box[2] - box[0]) * (box[3] - box[1]) for box in clipped])
    overlap = iou(np.array(clipped, np.float64), detections.boxes)
    people = []
    for place, index in enumerate(np.argsort(-areas, kind="stable")):
        best = int(overlap[index].argmax()) if overlap.shape[1] else None
        if best is None or overlap[index, best] < GIVEN_BOX_IOU:
            people.append(Person(place, clipped[index], 1.0, None))
        else:
            people.append(Person(place, clipped[index], float(detections.scores[best]), best))
    return people


def choose(everybody: list[Person], options: CutOptions) -> tuple[list[Person], list[Notice]]:
    """The people that the options select, and warnings about them.

    Raises:
        InvalidOption: `select` has an id without a person.
    """
    chosen = everybody
    if options.select is not None:
        missing = [wanted for wanted in options.select if wanted >= len(everybody)]
        if missing:
            there = f"ids 0 to {len(everybody) - 1}" if everybody else "nothing: nobody was found"
            raise InvalidOption(
                f"Option 'select' names {missing[0]}, and {_count(len(everybody))} found.",
                details={"name": "select", "value": str(list(options.select)), "allowed": there},
            )
        chosen = [person for person in everybody if person.id in options.select]
    notices = []
    if options.subject == "each" and len(chosen) > options.max_people:
        notices.append(
            Notice(
                "PEOPLE_LEFT_OUT",
                f"{_count(len(chosen))} found; the {options.max_people} largest were taken.",
                {"found": len(chosen), "max_people": options.max_people},
            )
        )
        chosen = chosen[: options.max_people]
    unsure = [person for person in chosen if person.confidence < LOW_CONFIDENCE]
    if unsure:
        notices.append(
            Notice(
                "LOW_CONFIDENCE",
                f"{_count(len(unsure))} detected with a confidence below {LOW_CONFIDENCE:g}.",
                {"ids": [person.id for person in unsure], "below": LOW_CONFIDENCE},
            )
        )
    return chosen, notices


def nobody(options: CutOptions) -> NoPersonDetected:
    """The error for a picture without people."""
    return NoPersonDetected(
        "Nobody was found in the picture.",
        details={"min_confidence": options.min_confidence, "tips": list(TIPS)},
    )


def _within(box: Box, frame: Rect) -> Box:
    clipped = (
        min(max(box[0], 0.0), float(frame.x2)),
        min(max(box[1], 0.0), float(frame.y2)),
        min(max(box[2], 0.0), float(frame.x2)),
        min(max(box[3], 0.0), float(frame.y2)),
    )
    if clipped[2] - clipped[0] < 1 or clipped[3] - clipped[1] < 1:
        raise InvalidOption(
            f"Option 'boxes' has {list(box)}, which is not in the picture of {frame.width}×{frame.height} pixels.",
            details={
                "name": "boxes",
                "value": str(list(box)),
                "allowed": f"boxes of at least 1×1 px within 0, 0, {frame.width}, {frame.height}",
            },
        )
    return clipped


def _box(row: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Box:
    x1, y1, x2, y2 = (float(value) for value in row)
    return x1, y1, x2, y2


def _count(number: int) -> str:
    return "1 person was" if number == 1 else f"{number} people were"
