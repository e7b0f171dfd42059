"""The detector's outputs → one soft mask of all people, at the resolution of the detector's prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pipeline.detect import Detections, iou, read_detections
from pipeline.letterbox import Letterbox

from stream.fit import Fit
from stream.tuning import HOLE_SHARE, ISLAND_SHARE, LOGIT_SPAN, STAY_FACTOR, STAY_IOU

_CALM = np.array([0.25, 0.5, 0.25], np.float32)
"""Low-pass filter against the checkerboard of the network's prototypes, which are upsampled two by two."""


def find(raw: Mapping[str, NDArray[Any]], fit: Fit, min_confidence: float, known: NDArray[np.float32]) -> Detections:
    """Detect the people of a frame; one of the last frame stays with a lower score than a new one needs.

    Args:
        raw: the detector's outputs for one picture.
        fit: the frame's placement in the network's input.
        min_confidence: the lowest score of a new person.
        known: (M, 4) float32, the boxes of the last frame, in pixels of the network's input.

    Returns:
        Boxes in pixels of the network's input.
    """
    placement = Letterbox(1.0, 1.0, 0, 0, fit.width, fit.height)
    found = read_detections(raw, placement, min_confidence * STAY_FACTOR)
    keep = found.scores >= min_confidence
    if known.size and not keep.all():
        keep |= iou(found.boxes, known).max(axis=1) >= STAY_IOU
    return Detections(found.boxes[keep], found.scores[keep], found.masks[keep], placement)


def mask_of(found: Detections, fit: Fit, rows: int, columns: int) -> NDArray[np.float32]:
    """The maximum of all masks: (rows, columns) float32 from −1 (background) to 1 (person).

    Each mask counts inside its own box only, because its logits elsewhere are meaningless.
    """
    together = np.full((rows, columns), -LOGIT_SPAN, np.float32)
    cell_px = fit.width / columns
    for box, logits in zip(found.boxes / cell_px, found.masks, strict=True):
        left, top = np.floor(box[:2]).astype(int)
        right, bottom = np.ceil(box[2:]).astype(int)
        part = together[top:bottom, left:right]
        np.maximum(part, cv2.sepFilter2D(logits, -1, _CALM, _CALM)[top:bottom, left:right], out=part)
    result: NDArray[np.float32] = np.clip(together, -LOGIT_SPAN, LOGIT_SPAN) / np.float32(LOGIT_SPAN)
    _tidy(result)
    return result


def _tidy(mask: NDArray[np.float32]) -> None:
    """Fill small holes and remove small islands, in place: the network misses badges and detects posters."""
    inside = (mask > 0).view(np.uint8)
    area = int(np.count_nonzero(inside))
    rows, columns = mask.shape
    holes = np.zeros(mask.shape, bool)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(1 - inside, connectivity=4)
    for part in range(1, count):
        x, y, width, height, cells = stats[part]
        if cells < HOLE_SHARE * area and x > 0 and y > 0 and x + width < columns and y + height < rows:
            holes |= parts == part
    if holes.any():
        mask[_with_rims(holes)] = 1
    count, parts, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    largest = max((int(stats[part, cv2.CC_STAT_AREA]) for part in range(1, count)), default=0)
    small = [part for part in range(1, count) if stats[part, cv2.CC_STAT_AREA] < ISLAND_SHARE * largest]
    if small:
        islands = np.isin(parts, small)
        mask[_with_rims(islands) & ((parts == 0) | islands)] = -1


def _with_rims(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grown by two cells on every side, where the network is uncertain."""
    return cv2.dilate(cells.view(np.uint8), np.ones((5, 5), np.uint8)) > 0
