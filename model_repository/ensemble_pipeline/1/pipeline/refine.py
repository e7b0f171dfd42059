"""Small mattes → alphas at full resolution, each person's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.detect import Detections
from pipeline.geometry import Box, Rect
from pipeline.grid import Grid
from pipeline.masks import mask_logits
from pipeline.people import Person
from pipeline.pixels import each_strip, strips
from pipeline.tuning import (
    ALONE_FADE,
    ALONE_REACH,
    ALPHA_CEILING,
    ALPHA_FLOOR,
    CROWD_FADE,
    CROWD_REACH,
    GATE_GRID_PX,
    GUIDE_EPSILON,
    GUIDE_FROM_SCALE,
    GUIDE_RADIUS_PX,
    GUIDE_STEEPNESS,
    ISLAND_ALPHA,
    ISLAND_EDGE_CELLS,
    NEIGHBOUR_MARGIN,
    NEIGHBOUR_STEEPNESS,
    SPECK_CELLS,
    SPECK_SHARE,
    SURE_FROM,
    SURE_OVER,
)

_STRETCH = np.clip(np.rint((np.arange(256) - ALPHA_FLOOR) * 255 / (ALPHA_CEILING - ALPHA_FLOOR)), 0, 255).astype(
    np.uint8
)

_HALF = 127.5
_SOFT_FROM, _SOFT_TO = (int(level) for level in np.flatnonzero((_STRETCH > 0) & (_STRETCH < 255))[[0, -1]])


@dataclass(frozen=True)
class Gate:
    """What is one person's within a crop: coarse grids (rows, columns) float32, 0 to 1, over the crop.

    Attributes:
        inside: bool, the person's instance mask (the box, where there is no mask).
        share: the part of the matte's alpha that this person gets.
        sure: the alpha that this person gets at least, or None.
    """

    inside: NDArray[np.bool_]
    share: NDArray[np.float32]
    sure: NDArray[np.float32] | None = None


def gate(person: Person, others: Sequence[Person], detections: Detections, rect: Rect) -> Gate:
    """How much of what the matte shows in a rectangle is this person's.

    Near the person's instance mask everything is, since hair, hands and bags reach past the mask; far from it nothing
    is, and nothing where somebody else's mask is clearly stronger. Among others, what the person's own mask is very
    sure of stays the person's. One without an instance mask owns what is in and near the box.

    Args:
        person: whose alpha it is.
        others: people to keep out.
        detections: where the instance masks are.
        rect: the crop.
    """
    scale = min(1.0, GATE_GRID_PX / max(rect.width, rect.height))
    size_wh = max(1, round(rect.width * scale)), max(1, round(rect.height * scale))
    rivals = [other.detection for other in others if other.detection is not None and _meets(other.box, rect)]
    own = person.detection
    if own is None:
        mine = np.zeros(size_wh[::-1], np.float32)
        inside = _inside(person.box, rect, size_wh)
    else:
        mine = mask_logits(detections, [own], rect, size_wh)[0]
        inside = mine > 0
    unit = scale * float(np.sqrt((person.box[2] - person.box[0]) * (person.box[3] - person.box[1])))
    reach, fade = (CROWD_REACH, CROWD_FADE) if rivals else (ALONE_REACH, ALONE_FADE)
    share = _near(inside, reach * unit, fade * unit)
    if not rivals:
        return Gate(inside, share)
    theirs = mask_logits(detections, rivals, rect, size_wh).max(axis=0)
    lead = NEIGHBOUR_STEEPNESS * (theirs - mine - NEIGHBOUR_MARGIN)
    share[theirs > 0] /= 1 + np.exp(np.clip(lead[theirs > 0], -50, 50))
    return Gate(inside, share, np.clip((mine - SURE_FROM) / SURE_OVER, 0, 1) * share)


def put_back(matte: NDArray[np.uint8], gate: Gate | None, crop: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A crop's alpha at full resolution.

    Args:
        matte: (S, S) uint8, the crop's matte.
        gate: what of it is the person's, or None to keep everything.
        crop: (h, w, 3) uint8 RGB, what was matted.

    Returns:
        (h, w) uint8.
    """
    height, width = crop.shape[:2]
    if gate is not None:
        share = cv2.resize(_without_islands(matte, gate), matte.shape[::-1])
        matte = np.asarray(cv2.multiply(matte, share, dtype=cv2.CV_8U), np.uint8)
        if gate.sure is not None:
            least = cv2.resize(gate.sure, matte.shape[::-1])
            matte = np.maximum(matte, np.rint(least * 255).astype(np.uint8))
    scale = max(height, width) / matte.shape[0]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    alpha = np.asarray(cv2.resize(matte, (width, height), interpolation=interpolation), np.uint8)
    if scale >= GUIDE_FROM_SCALE:
        _follow_edges(alpha, crop, matte.shape[0])
    each_strip(lambda strip: _stretch(alpha[strip]), strips(height, width))
    return alpha


def _stretch(alpha: NDArray[np.uint8]) -> None:
    """Let nearly nothing be nothing and nearly everything be everything, in place."""
    cv2.LUT(alpha, _STRETCH, dst=alpha)


def _without_islands(matte: NDArray[np.uint8], gate: Gate) -> NDArray[np.float32]:
    """The gate's share, 0 where the matte shows something that nowhere touches the person's instance mask, or a speck
    far from the rest of the person."""
    if not gate.inside.any():
        return gate.share
    small = cv2.resize(matte, gate.share.shape[::-1]) * gate.share
    count, parts, stats, _ = cv2.connectedComponentsWithStats((small > ISLAND_ALPHA).view(np.uint8))
    cells = stats[:, cv2.CC_STAT_AREA]
    own = np.zeros(count, bool)
    own[parts[gate.inside]] = True
    own[0] = False  # what is in no part
    if not own.any():
        return gate.share
    large = own & (cells >= SPECK_SHARE * cells[own].max())
    if count == 1 + np.count_nonzero(large):
        return gate.share
    mainland = large[parts].view(np.uint8)
    near = _grown(mainland, SPECK_CELLS)
    own &= np.isin(np.arange(count), parts[near])
    others = (parts > 0) & ~own[parts]
    return np.where(_grown(others.view(np.uint8), ISLAND_EDGE_CELLS) & ~_grown(mainland, 1), np.float32(0), gate.share)


def _grown(cells: NDArray[np.uint8], by: int) -> NDArray[np.bool_]:
    return cv2.dilate(cells, np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0


def feather(alpha: NDArray[np.uint8], feather_px: int) -> NDArray[np.uint8]:
    """Soften an alpha (H, W) uint8 with a Gaussian whose standard deviation is half of `feather_px`."""
    if feather_px == 0:
        return alpha
    softened = cv2.GaussianBlur(alpha, (0, 0), feather_px / 2, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(softened, np.uint8)


def feather_reach_px(feather_px: int) -> int:
    """How far feathering spreads an alpha: three standard deviations."""
    return -(-3 * feather_px // 2)


def _follow_edges(alpha: NDArray[np.uint8], crop: NDArray[np.uint8], matte_side_px: int) -> None:
    """Let the soft pixels of an enlarged alpha (h, w) uint8 follow the edges of its crop (h, w, 3) uint8, in place.

    A fast guided filter (He and Sun, 2015): around each cell of about a matte's pixel, alpha is taken to be a linear
    function of brightness; the function is enlarged instead of the alpha. It is made a little steeper than found,
    since the filter's window makes edges wider.
    """
    height, width = alpha.shape
    grid = Grid(height, width, max(1, round(max(height, width) / matte_side_px)))
    guide = cv2.cvtColor(grid.shrink(crop), cv2.COLOR_RGB2GRAY).astype(np.float32)
    target = grid.shrink(alpha).astype(np.float32)
    mean_guide, mean_target = _around(guide), _around(target)
    slope = (_around(guide * target) - mean_guide * mean_target) / (
        _around(guide * guide) - mean_guide * mean_guide + np.float32(GUIDE_EPSILON)
    )
    offset = (mean_target - slope * mean_guide - np.float32(_HALF)) * np.float32(GUIDE_STEEPNESS) + np.float32(_HALF)
    line = slope * np.float32(GUIDE_STEEPNESS), offset

    def follow(strip: slice) -> None:
        part = alpha[strip]
        # What lies below the range wraps around to above it. Of bool, unlike of bytes, numpy finds the True ones fast.
        soft = np.flatnonzero(part - np.uint8(_SOFT_FROM) <= np.uint8(_SOFT_TO - _SOFT_FROM))
        if soft.size:
            brightness = cv2.cvtColor(crop[strip], cv2.COLOR_RGB2GRAY).take(soft)
            slopes, offsets = grid.sample(line, strip, soft)
            part.put(soft, np.clip(np.rint(slopes * brightness + offsets), 0, 255))

    each_strip(follow, strips(height, width))


def _around(values: NDArray[np.float32]) -> NDArray[np.float32]:
    window = (2 * GUIDE_RADIUS_PX + 1, 2 * GUIDE_RADIUS_PX + 1)
    return np.asarray(cv2.blur(values, window, borderType=cv2.BORDER_REFLECT), np.float32)


def _near(inside: NDArray[np.bool_], reach: float, fade: float) -> NDArray[np.float32]:
    """1 up to `reach` grid cells from the mask, falling to 0 over `fade` more; 0 everywhere without a mask."""
    if not inside.any():
        return np.zeros(inside.shape, np.float32)
    distance = np.asarray(cv2.distanceTransform((~inside).view(np.uint8), cv2.DIST_L2, 3), np.float32)
    return np.clip((reach + fade - distance) / max(fade, 1e-3), 0, 1)


def _inside(box: Box, rect: Rect, size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    x = rect.x1 + (np.arange(size_wh[0]) + 0.5) * rect.width / size_wh[0]
    y = rect.y1 + (np.arange(size_wh[1]) + 0.5) * rect.height / size_wh[1]
    columns, rows = (x >= box[0]) & (x <= box[2]), (y >= box[1]) & (y <= box[3])
    return rows[:, None] & columns[None]


def _meets(box: Box, rect: Rect) -> bool:
    return box[0] < rect.x2 and box[2] > rect.x1 and box[1] < rect.y2 and box[3] > rect.y1
