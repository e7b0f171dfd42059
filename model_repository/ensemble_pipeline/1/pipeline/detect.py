"""The detector's 300 candidates → people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cutaway.contract.limits import DETECTOR_SIDE_PX, PERSON_CLASS
from numpy.typing import NDArray

from pipeline.letterbox import Letterbox
from pipeline.tuning import NMS_IOU


@dataclass(frozen=True)
class Detections:
    """People that were found, best score first.

    Attributes:
        boxes: (N, 4) float32, pixels of the upright picture, clipped to it.
        scores: (N,) float32, 0 to 1.
        masks: (N, 160, 160) float32, logits of the instance masks over the whole letterbox, not cropped to the boxes.
        placement: how the whole picture lies in the letterbox.
        placements: how what each detection was found in lies there, where that is a slice for some of them.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    masks: NDArray[np.float32]
    placement: Letterbox
    placements: tuple[Letterbox, ...] | None = None

    def placement_of(self, index: int) -> Letterbox:
        return self.placement if self.placements is None else self.placements[index]

    def __len__(self) -> int:
        return len(self.scores)


def read_detections(
    raw: Mapping[str, NDArray[Any]], placement: Letterbox, min_confidence: float, quarter_turns: int = 0
) -> Detections:
    """Keep people of at least a score, one detection each.

    Args:
        raw: the detector's outputs for one picture: ``boxes`` (300, 4) float32 in letterboxed pixels, ``scores``
            (300,) float32, ``classes`` (300,) int32, ``coefficients`` (300, 32) float32, ``prototypes``
            (32, 160, 160) float32.
        placement: the picture's place in the letterbox.
        min_confidence: the lowest score kept.
        quarter_turns: how often the square was turned by 90° counterclockwise before it was shown to the detector.
    """
    boxes, scores = raw["boxes"], raw["scores"]
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    with np.errstate(invalid="ignore"):
        keep = (raw["classes"] == PERSON_CLASS) & (scores >= min_confidence) & (width > 0) & (height > 0)
    kept = np.flatnonzero(keep & np.isfinite(boxes).all(axis=1))
    kept = kept[non_maximum_suppression(boxes[kept], scores[kept], NMS_IOU)]
    in_picture = placement.to_picture(_turned_back(boxes[kept], quarter_turns))
    # Clipping can leave nothing of a box that lies in the grey margin.
    seen = (in_picture[:, 2] - in_picture[:, 0] >= 1) & (in_picture[:, 3] - in_picture[:, 1] >= 1)
    kept = kept[seen]
    prototypes = raw["prototypes"]
    masks = (raw["coefficients"][kept] @ prototypes.reshape(len(prototypes), -1)).reshape(-1, *prototypes.shape[1:])
    if quarter_turns:
        masks = np.ascontiguousarray(np.rot90(masks, -quarter_turns, axes=(1, 2)))
    return Detections(in_picture[seen], scores[kept], masks, placement)


def _turned_back(boxes: NDArray[np.float32], quarter_turns: int) -> NDArray[np.float32]:
    """Boxes (N, 4) of a square that was turned counterclockwise, in the square as it was."""
    for _ in range(quarter_turns):
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack([DETECTOR_SIDE_PX - y2, x1, DETECTOR_SIDE_PX - y1, x2], axis=1)
    return boxes


def non_maximum_suppression(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], max_iou: float
) -> NDArray[np.intp]:
    """Greedy suppression within one class.

    Args:
        boxes: (N, 4) float32.
        scores: (N,) float32; equal scores keep their order.
        max_iou: a box is suppressed where it overlaps a better one by more than this.

    Returns:
        Indices of the boxes kept, best score first.
    """
    order = np.argsort(-scores, kind="stable")
    overlap = iou(boxes[order], boxes[order])
    alive = np.ones(len(order), bool)
    for rank in range(len(order)):
        if alive[rank]:
            alive[rank + 1 :] &= overlap[rank, rank + 1 :] <= max_iou
    kept: NDArray[np.intp] = order[alive]
    return kept


def iou(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Intersection over union of boxes (N, 4) with boxes (M, 4) → (N, M) float64, 0 where both are empty."""
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    shared = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    joint = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    ratio: NDArray[np.float64] = np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)
    return ratio
