"""Small mattes → alphas at full resolution, each person's own."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.detect import Detections
from pipeline.geometry import Box, Rect
from pipeline.masks import mask_logits
from pipeline.people import Person
from pipeline.tuning import GATE_FADE, GATE_GRID_PX, GATE_REACH, NEIGHBOUR_SHARPNESS


def gate(person: Person, others: Sequence[Person], detections: Detections, rect: Rect) -> NDArray[np.float32]:
    """How much of what the matte holds in a rectangle is this person's.

    Near the person's instance mask everything is (hair and hands reach past the mask); far from it nothing, and
    nothing where somebody else's mask is stronger. A person without an instance mask owns all that is in the box.

    Args:
        person: whose alpha it is.
        others: people to keep out.
        detections: where the instance masks are.
        rect: the crop.

    Returns:
        (rows, columns) float32, 0 to 1, a coarse grid over the rectangle.
    """
    scale = min(1.0, GATE_GRID_PX / max(rect.width, rect.height))
    size_wh = max(1, round(rect.width * scale)), max(1, round(rect.height * scale))
    indices = [other.detection for other in others if other.detection is not None and _meets(other.box, rect)]
    own = person.detection
    logits = mask_logits(detections, [*indices, *([] if own is None else [own])], rect, size_wh)
    inside = (logits[-1] > 0).astype(np.uint8) if own is not None else _inside(person.box, rect, size_wh)
    box_px = np.sqrt((person.box[2] - person.box[0]) * (person.box[3] - person.box[1])) * scale
    share = _near(inside, GATE_REACH * float(box_px), GATE_FADE * float(box_px))
    if indices:
        theirs = logits[: len(indices)].max(axis=0)
        mine = logits[-1] if own is not None else np.zeros_like(theirs)
        margin = np.where(theirs > 0, mine - theirs, np.float32(50))
        share *= 1 / (1 + np.exp(np.clip(-NEIGHBOUR_SHARPNESS * margin, -50, 50)))
    return share


def put_back(matte: NDArray[np.uint8], share: NDArray[np.float32] | None, rect: Rect) -> NDArray[np.uint8]:
    """A crop's alpha at full resolution.

    Args:
        matte: (S, S) uint8.
        share: (rows, columns) float32, the gate, or None to keep everything.
        rect: the crop.

    Returns:
        (rect.height, rect.width) uint8.
    """
    if share is not None:
        fine = cv2.resize(share, matte.shape[::-1], interpolation=cv2.INTER_LINEAR)
        matte = np.asarray(cv2.multiply(matte, fine, dtype=cv2.CV_8U), np.uint8)
    shrinks = rect.width < matte.shape[1] and rect.height < matte.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(matte, (rect.width, rect.height), interpolation=interpolation), np.uint8)


def feather(alpha: NDArray[np.uint8], feather_px: int) -> NDArray[np.uint8]:
    """Soften an alpha (H, W) uint8 with a Gaussian whose standard deviation is half of `feather_px`."""
    if feather_px == 0:
        return alpha
    softened = cv2.GaussianBlur(alpha, (0, 0), feather_px / 2, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(softened, np.uint8)


def feather_reach_px(feather_px: int) -> int:
    """How far feathering spreads an alpha: three standard deviations."""
    return -(-3 * feather_px // 2)


def _near(inside: NDArray[np.uint8], reach: float, fade: float) -> NDArray[np.float32]:
    """1 up to `reach` grid cells from the mask, falling to 0 over `fade` more; 0 everywhere without a mask."""
    if not inside.any():
        return np.zeros(inside.shape, np.float32)
    distance = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
    return np.clip((reach + fade - distance) / max(fade, 1e-3), 0, 1).astype(np.float32)


def _inside(box: Box, rect: Rect, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    x = rect.x1 + (np.arange(size_wh[0]) + 0.5) * rect.width / size_wh[0]
    y = rect.y1 + (np.arange(size_wh[1]) + 0.5) * rect.height / size_wh[1]
    columns, rows = (x >= box[0]) & (x <= box[2]), (y >= box[1]) & (y <= box[3])
    return (rows[:, None] & columns[None]).astype(np.uint8)


def _meets(box: Box, rect: Rect) -> bool:
    return box[0] < rect.x2 and box[2] > rect.x1 and box[1] < rect.y2 and box[3] > rect.y1
