"""Where the detector looks: at the whole picture, at slices of it, and at the picture turned.

Slices are for pictures that the letterbox shrinks so far that people vanish; the idea is slicing-aided inference
(Akyon et al., 2022). Both further looks take one call of the detector each, and only where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cutaway.contract.limits import DETECTOR_SIDE_PX, MODEL_MAX_BATCH
from numpy.typing import NDArray

from pipeline.detect import Detections, iou, read_detections
from pipeline.geometry import Rect, whole
from pipeline.letterbox import Letterbox, letterbox
from pipeline.notices import Notice
from pipeline.tuning import (
    CUT_SHARED,
    LARGE_PERSON,
    SLICE_FROM_SCALE,
    SLICE_IOU,
    SLICE_MIN_SIDE_PX,
    SLICE_OVERLAP,
    SURE_CONFIDENCE,
    TURNED_LEAD,
    TURNED_MIN_CONFIDENCE,
)

Detector = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""(N, 640, 640, 3) uint8 RGB, letterboxed, N up to 8 → the outputs of ``yolov8_seg`` by name, each with N in front."""


@dataclass(frozen=True)
class Sighting:
    """Who was found.

    Attributes:
        detections: in the upright picture's pixels.
        quarter_turns: how often the picture was turned by 90° counterclockwise until people in it stood upright.
        notices: what the caller should know.
    """

    detections: Detections
    quarter_turns: int = 0
    notices: tuple[Notice, ...] = ()


def look(rgb: NDArray[np.uint8], detector: Detector, min_confidence: float, *, turn: bool = True) -> Sighting:
    """Find people.

    Args:
        rgb: (H, W, 3) uint8.
        detector: the network.
        min_confidence: the lowest score kept.
        turn: look at the picture turned, too, where nobody is found with some confidence.
    """
    square, placement = letterbox(rgb)
    raw = detector(square[None])
    found = read_detections(_of(raw, 0), placement, min_confidence)
    if _vanish(placement, found):
        found = _with_slices(rgb, detector, min_confidence, found)
    certain = float(found.scores.max(initial=0))
    if certain >= SURE_CONFIDENCE or not turn:
        return Sighting(found)
    needed = max(min_confidence, TURNED_MIN_CONFIDENCE, certain + TURNED_LEAD if len(found) else 0.0)
    return _turned(square, placement, detector, min_confidence, needed) or Sighting(found)


def people_share(rgb: NDArray[np.uint8], detector: Detector, min_confidence: float) -> float:
    """The part of a picture (H, W, 3) uint8 that people's boxes cover, by one look: 0 to 1, more where they overlap."""
    square, placement = letterbox(rgb)
    boxes = read_detections(_of(detector(square[None]), 0), placement, min_confidence).boxes
    return float((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).sum()) / (rgb.shape[0] * rgb.shape[1])


def slices(width: int, height: int) -> list[Rect]:
    """Overlapping squares that cover a picture, cut to it: at most one batch, as small as that allows."""
    side = float(SLICE_MIN_SIDE_PX)
    while _count(width, side) * _count(height, side) > MODEL_MAX_BATCH:
        side *= 1.02
    across, down = _starts(width, round(side)), _starts(height, round(side))
    return [Rect(x, y, x + round(side), y + round(side)).within(whole(width, height)) for y in down for x in across]


def _of(raw: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    return {name: values[index] for name, values in raw.items()}


def _vanish(placement: Letterbox, found: Detections) -> bool:
    """Whether small people may have vanished in the letterbox, and no large one says what the picture is about."""
    if min(placement.scale_x, placement.scale_y) * SLICE_FROM_SCALE >= 1:
        return False
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]) * (placement.scale_x, placement.scale_y)
    return bool((sides < LARGE_PERSON * DETECTOR_SIDE_PX).all())


def _count(length: int, side: float) -> int:
    return 1 if length <= side else int(np.ceil((length - SLICE_OVERLAP * side) / ((1 - SLICE_OVERLAP) * side)))


def _starts(length: int, side: int) -> list[int]:
    return [round(at) for at in np.linspace(0, max(0, length - side), _count(length, side))]


def _with_slices(rgb: NDArray[np.uint8], detector: Detector, min_confidence: float, found: Detections) -> Detections:
    """What was found in the whole picture, and what slices of it add."""
    height, width = rgb.shape[:2]
    rects = slices(width, height)
    squares = [letterbox(rgb[rect.slices]) for rect in rects]
    raw = detector(np.stack([square for square, _ in squares]))
    parts, cut = [found], [np.zeros(len(found), bool)]
    for index, (rect, (_, placement)) in enumerate(zip(rects, squares, strict=True)):
        part = read_detections(_of(raw, index), replace(placement, from_x=rect.x1, from_y=rect.y1), min_confidence)
        parts.append(part)
        cut.append(_touches_a_seam(part, rect, width, height))
    return _joined(parts, np.concatenate(cut))


def _touches_a_seam(part: Detections, rect: Rect, width: int, height: int) -> NDArray[np.bool_]:
    """Which boxes end where their slice does and the picture does not: somebody is cut in two there."""
    margin = 2 / part.placement.scale_x
    x1, y1, x2, y2 = part.boxes.T
    return np.asarray(
        ((x1 < rect.x1 + margin) & (rect.x1 > 0))
        | ((y1 < rect.y1 + margin) & (rect.y1 > 0))
        | ((x2 > rect.x2 - margin) & (rect.x2 < width))
        | ((y2 > rect.y2 - margin) & (rect.y2 < height))
    )


def _joined(parts: Sequence[Detections], cut: NDArray[np.bool_]) -> Detections:
    """One detection for each person, by greedy suppression: those that a seam cuts come last.

    Of one slice all are kept, since suppression within it is done. Of two slices the worse one goes where both overlap
    like one person, and where a cut one lies in a whole one or the other way round.
    """
    boxes, scores = np.concatenate([part.boxes for part in parts]), np.concatenate([part.scores for part in parts])
    source = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.lexsort((-scores, cut))
    boxes, cut, source = boxes[order], cut[order], source[order]
    shared = iou(boxes, boxes) > SLICE_IOU
    inside = _share(boxes) > CUT_SHARED
    same = (shared | (inside & (cut[:, None] | cut[None]))) & (source[:, None] != source[None])
    alive = np.ones(len(order), bool)
    for rank in range(len(order)):
        if alive[rank]:
            alive[rank + 1 :] &= ~same[rank, rank + 1 :]
    kept = order[alive]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    placements = [part.placement for part in parts for _ in range(len(part))]
    return Detections(
        np.concatenate([part.boxes for part in parts])[kept],
        scores[kept],
        np.concatenate([part.masks for part in parts])[kept],
        parts[0].placement,
        tuple(placements[index] for index in kept),
    )


def _share(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, N): the part of the smaller one of two boxes that lies in the other one."""
    a, b = boxes.astype(np.float64)[:, None], boxes.astype(np.float64)[None]
    common = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64).prod(-1)
    share: NDArray[np.float64] = common / np.maximum(np.minimum(areas[:, None], areas[None]), 1e-9)
    return share


def _turned(
    square: NDArray[np.uint8], placement: Letterbox, detector: Detector, min_confidence: float, needed: float
) -> Sighting | None:
    """The turn by 90°, 180° or 270° with the most confident person, if that confidence reaches what is needed."""
    turns = (1, 2, 3)
    raw = detector(np.stack([np.rot90(square, count) for count in turns]))
    found = [read_detections(_of(raw, at), placement, min_confidence, count) for at, count in enumerate(turns)]
    best = max(range(len(turns)), key=lambda at: float(found[at].scores.max(initial=0)))
    if found[best].scores.max(initial=0) < needed:
        return None
    degrees = 90 * turns[best]
    notice = Notice(
        "PEOPLE_TURNED",
        f"People were found after the picture had been turned; they are turned by {degrees}° clockwise.",
        {"degrees": degrees},
    )
    return Sighting(found[best], turns[best], (notice,))
