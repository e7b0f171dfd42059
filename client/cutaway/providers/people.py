"""Who is cut out of a hosted matte: from a server's detection, or from the boxes that the caller gave.

The rules and their errors are the server's own (``pipeline/people.py``), so that the same options are refused alike
whoever serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.contract.errors import InvalidOption, NoPersonDetected
from cutaway.contract.options import CutOptions

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Person:
    """Somebody to cut out: `box` in pixels of the upright picture, `confidence` 0 to 1."""

    id: int
    box: Box
    confidence: float


def people_of(outputs: Mapping[str, Any], report: Mapping[str, Any], options: CutOptions) -> list[Person]:
    """The people of a server's detection answer, which has heeded `select` already.

    Raises:
        NoPersonDetected: there are none.
    """
    entries = report.get("people")
    ids = [entry["id"] for entry in entries] if isinstance(entries, list) else []
    found = [
        Person(id_, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), float(score))
        for id_, box, score in zip(ids, outputs["boxes"], outputs["scores"], strict=False)
    ]
    if not found:
        raise NoPersonDetected(
            "Nobody was found in the picture.", details={"min_confidence": options.min_confidence, "tips": []}
        )
    return found


def given_people(boxes: Sequence[Box], options: CutOptions, size_wh: tuple[int, int]) -> list[Person]:
    """The boxes that were given as people, largest first, less those that `select` leaves out.

    Raises:
        InvalidOption: a box lies outside the picture, or `select` names one that is not there.
    """
    inside = [_within(box, size_wh) for box in boxes]
    inside.sort(key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
    everybody = [Person(place, box, 1.0) for place, box in enumerate(inside)]
    if options.select is None:
        return everybody
    missing = [wanted for wanted in options.select if wanted >= len(everybody)]
    if missing:
        there = "1 person was" if len(everybody) == 1 else f"{len(everybody)} people were"
        raise InvalidOption(
            f"Option 'select' names {missing[0]}, and {there} found.",
            details={
                "name": "select",
                "value": str(list(options.select)),
                "allowed": f"ids 0 to {len(everybody) - 1}",
            },
        )
    return [person for person in everybody if person.id in options.select]


def _within(box: Box, size_wh: tuple[int, int]) -> Box:
    width, height = size_wh
    clipped = (
        min(max(box[0], 0.0), float(width)),
        min(max(box[1], 0.0), float(height)),
        min(max(box[2], 0.0), float(width)),
        min(max(box[3], 0.0), float(height)),
    )
    if clipped[2] - clipped[0] < 1 or clipped[3] - clipped[1] < 1:
        raise InvalidOption(
            f"Option 'boxes' has {list(box)}, which is not in the picture of {width}×{height} pixels.",
            details={
                "name": "boxes",
                "value": str(list(box)),
                "allowed": f"boxes of at least 1×1 px within 0, 0, {width}, {height}",
            },
        )
    return clipped
