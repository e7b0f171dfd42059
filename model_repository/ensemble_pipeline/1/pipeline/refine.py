"""Small mattes → alphas at full resolution, one per person."""

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
    DOMINANT_FADE,
    DOMINANT_REACH,
    GATE_GRID_PX,
    GUIDE_EPSILON,
    GUIDE_FROM_SCALE,
    GUIDE_RADIUS_PX,
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

_SOFT_FROM, _SOFT_TO = (int(level) for level in np.flatnonzero((_STRETCH > 0) & (_STRETCH < 255))[[0, -1]])


@dataclass(frozen=True)
class Gate:
    """A person's share of a crop's matte: coarse grids (rows, columns) float32, 0 to 1, over the crop.

    Attributes:
        inside: bool, the person's instance mask (the box, where there is no mask).
        share: factor of the matte's alpha.
        sure: lower bound of the alpha, or None.
    """

    inside: NDArray[np.bool_]
    share: NDArray[np.float32]
    sure: NDArray[np.float32] | None = None


def gate(person: Person, others: Sequence[Person], detections: Detections, rect: Rect, dominant: bool = False) -> Gate:
    """A person's share of the matte in a rectangle.

    1 near the person's instance mask, since hair, hands and bags extend past it; 0 far from it, and where another
    person's mask is clearly stronger. Beside other people the alpha has a lower bound where the person's own logit is
    high. Without an instance mask the box takes its place.

    Args:
        person: the one whose share it is.
        others: people to exclude.
        detections: with the instance masks.
        rect: the crop.
        dominant: whether nobody else is in the picture, and it is the crop.
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
    reach, fade = (DOMINANT_REACH, DOMINANT_FADE) if dominant else (ALONE_REACH, ALONE_FADE)
    if rivals:
        reach, fade = CROWD_REACH, CROWD_FADE
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
        gate: the person's share of it, or None for all of it.
        crop: (h, w, 3) uint8 RGB that was matted.

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
    """Stretch the contrast so that `ALPHA_FLOOR` becomes 0 and `ALPHA_CEILING` 255, in place."""
    cv2.LUT(alpha, _STRETCH, dst=alpha)


def _without_islands(matte: NDArray[np.uint8], gate: Gate) -> NDArray[np.float32]:
    """The gate's share, 0 at islands: connected parts of the matte that do not touch the person's instance mask, and
    small ones far from the rest of the person."""
    if not gate.inside.any():
        return gate.share
    small = cv2.resize(matte, gate.share.shape[::-1]) * gate.share
    count, parts, stats, _ = cv2.connectedComponentsWithStats((small > ISLAND_ALPHA).view(np.uint8))
    cells = stats[:, cv2.CC_STAT_AREA]
    own = np.zeros(count, bool)
    own[parts[gate.inside]] = True
    own[0] = False  # the label of cells in no part
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
    """The distance over which feathering spreads an alpha: three standard deviations."""
    return -(-3 * feather_px // 2)


def _follow_edges(alpha: NDArray[np.uint8], crop: NDArray[np.uint8], matte_side_px: int) -> None:
    """Align the soft pixels of an enlarged alpha (h, w) uint8 with the edges of its crop (h, w, 3) uint8, in place.

    A fast guided filter (He and Sun, 2015): around each cell of about a matte's pixel, alpha is fitted as a linear
    function of brightness, and its coefficients are enlarged instead of the alpha.
    """
    height, width = alpha.shape
    grid = Grid(height, width, max(1, round(max(height, width) / matte_side_px)))
    brightness = np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.uint8)
    guide = grid.shrink(brightness).astype(np.float32)
    target = grid.shrink(alpha).astype(np.float32)
    mean_guide, mean_target = _around(guide), _around(target)
    slope = (_around(guide * target) - mean_guide * mean_target) / (
        _around(guide * guide) - mean_guide * mean_guide + np.float32(GUIDE_EPSILON)
    )
    line = slope, mean_target - slope * mean_guide

    def follow(strip: slice) -> None:
        part = alpha[strip]
        # One comparison for both bounds, since unsigned subtraction wraps below the range; numpy searches bool fast.
        soft = np.flatnonzero(part - np.uint8(_SOFT_FROM) <= np.uint8(_SOFT_TO - _SOFT_FROM))
        if soft.size:
            slopes, offsets = grid.sample(line, strip, soft)
            part.put(soft, np.clip(np.rint(slopes * brightness[strip].take(soft) + offsets), 0, 255))

    each_strip(follow, strips(height, width))


def _around(values: NDArray[np.float32]) -> NDArray[np.float32]:
    window = (2 * GUIDE_RADIUS_PX + 1, 2 * GUIDE_RADIUS_PX + 1)
    return np.asarray(cv2.blur(values, window, borderType=cv2.BORDER_REFLECT), np.float32)


def _near(inside: NDArray[np.bool_], reach: float, fade: float) -> NDArray[np.float32]:
    """1 up to `reach` grid cells from the mask, falling to 0 over `fade` more; 0 everywhere where the mask is empty."""
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
