"""Instance masks of people in a rectangle, at the size needed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from cutaway.contract.limits import DETECTOR_SIDE_PX
from numpy.typing import NDArray

from pipeline.detect import Detections
from pipeline.geometry import Rect
from pipeline.letterbox import Letterbox

OUTSIDE = -20.0
"""Logit outside a person's box: a probability of nearly 0."""


def mask_logits(
    detections: Detections, indices: Sequence[int], rect: Rect, size_wh: tuple[int, int]
) -> NDArray[np.float32]:
    """Mask logits of some people within a rectangle: above 0 is the person.

    Each mask is upsampled before it is cropped to its detection box, because the reverse order smears the box's edges.

    Args:
        detections: with the masks.
        indices: which detections, N of them.
        rect: rectangle of the upright picture; may leave it.
        size_wh: columns and rows of the result, which the rectangle is scaled to.

    Returns:
        (N, rows, columns) float32; `OUTSIDE` beyond a person's box.
    """
    columns, rows = size_wh
    step_x, step_y = rect.width / columns, rect.height / rows
    proto_scale = detections.masks.shape[2] / DETECTOR_SIDE_PX
    logits = np.full((len(indices), rows, columns), OUTSIDE, np.float32)
    for row, index in enumerate(indices):
        x1, y1, x2, y2 = detections.boxes[index]
        # Grid cells whose centres lie in the box.
        left, right = _cells(x1 - rect.x1, x2 - rect.x1, step_x, columns)
        top, bottom = _cells(y1 - rect.y1, y2 - rect.y1, step_y, rows)
        if left >= right or top >= bottom:
            continue
        shifted = _grid_to_prototypes(detections.placement_of(index), rect, step_x, step_y, proto_scale)
        shifted[:, 2] += shifted[:, :2] @ (left, top)
        logits[row, top:bottom, left:right] = cv2.warpAffine(
            detections.masks[index],
            shifted,
            (right - left, bottom - top),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    return logits


def _grid_to_prototypes(
    placement: Letterbox, rect: Rect, step_x: float, step_y: float, proto_scale: float
) -> NDArray[np.float64]:
    """(2, 3) affine map from grid indices to prototype indices, centre to centre."""
    x1, y1 = rect.x1 - placement.from_x, rect.y1 - placement.from_y
    scale_x, scale_y = placement.scale_x * proto_scale, placement.scale_y * proto_scale
    return np.array(
        [
            [step_x * scale_x, 0, (x1 + step_x / 2) * scale_x + placement.left * proto_scale - 0.5],
            [0, step_y * scale_y, (y1 + step_y / 2) * scale_y + placement.top * proto_scale - 0.5],
        ]
    )


def _cells(start: float, end: float, step: float, count: int) -> tuple[int, int]:
    """First and one-past-last cell whose centre lies in start … end."""
    first = int(np.ceil(start / step - 0.5))
    last = int(np.ceil(end / step - 0.5))
    return max(0, first), min(count, last)
