"""Mattes and instance masks → one alpha per cut-out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.detect import Detections
from pipeline.geometry import Box, Rect, bounding, enclosing
from pipeline.people import Person
from pipeline.refine import feather, feather_reach_px, gate, put_back


@dataclass(frozen=True)
class Layer:
    """An alpha and its place.

    Attributes:
        box: the detection box, of all people in it together; the picture for subject 'all'.
        region: the rectangle of the picture that `alpha` covers; there is none elsewhere.
        alpha: (region.height, region.width) uint8.
        frame: the rectangle of the picture that the cut-out covers.
    """

    box: Box
    region: Rect
    alpha: NDArray[np.uint8]
    frame: Rect


def whole_picture(rgb: NDArray[np.uint8], matte: NDArray[np.uint8], frame: Rect, feather_px: int) -> Layer:
    """The layer of the whole picture, from it (H, W, 3) uint8 and its matte (S, S) uint8."""
    alpha = feather(put_back(matte, None, rgb), feather_px)
    return Layer((float(frame.x1), float(frame.y1), float(frame.x2), float(frame.y2)), frame, alpha, frame)


def people_layer(
    rgb: NDArray[np.uint8],
    people: Sequence[Person],
    everybody: Sequence[Person],
    mattes: Mapping[Rect, NDArray[np.uint8]],
    rects: Mapping[int, Rect],
    detections: Detections,
    frame: Rect,
    feather_px: int,
    padding_px: int | None,
    proceed: Callable[[], None] = lambda: None,
) -> Layer:
    """Some people in one alpha, all others excluded.

    Args:
        rgb: (H, W, 3) uint8, the picture.
        people: those in the layer, at least one.
        everybody: all people of the picture.
        mattes: (S, S) uint8 alphas by crop.
        rects: crops by person id.
        detections: with the instance masks.
        frame: the picture.
        feather_px: see `refine.feather`.
        padding_px: the cut-out covers the people's box and this margin; None for the whole picture.
        proceed: called before each further person; raises to end the request.
    """
    box = (
        min(person.box[0] for person in people),
        min(person.box[1] for person in people),
        max(person.box[2] for person in people),
        max(person.box[3] for person in people),
    )
    ids = {person.id for person in people}
    others = [person for person in everybody if person.id not in ids]
    region = bounding([rects[index] for index in ids]).grown(feather_reach_px(feather_px)).within(frame)
    alpha = np.zeros((region.height, region.width), np.uint8)
    for place, person in enumerate(people):
        if place:
            proceed()
        rect = rects[person.id]
        own = put_back(
            mattes[rect],
            gate(person, others, detections, rect, len(everybody) == 1 and rect == frame),
            rgb[rect.slices],
        )
        if len(people) == 1 and rect == region:
            alpha = own
        else:
            part = alpha[rect.seen_from(region).slices]
            np.maximum(part, own, out=part)
    cropped = frame if padding_px is None else enclosing(box).grown(padding_px).within(frame)
    return Layer(box, region, feather(alpha, feather_px), cropped)
