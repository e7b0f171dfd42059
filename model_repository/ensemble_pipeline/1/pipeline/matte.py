"""Crops of a picture → small alpha mattes, in as few model calls as the batch size allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from cutaway.contract.limits import MODEL_MAX_BATCH
from numpy.typing import NDArray

from pipeline.geometry import Rect, whole
from pipeline.grid import cell_means
from pipeline.tuning import MAX_OWN_CROPS

Matter = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(N, S, S, 3) uint8 RGB → (N, S, S) uint8 alpha, N at most `MODEL_MAX_BATCH`."""


def different_crops(rects: Sequence[Rect]) -> int:
    """How many crops the network is given of so many rectangles."""
    return min(len(set(rects)), MAX_OWN_CROPS)


def matte_crops(
    rgb: NDArray[np.uint8], rects: Sequence[Rect], matter: Matter, side: int, quarter_turns: int = 0
) -> dict[Rect, NDArray[np.uint8]]:
    """Matte rectangles of a picture; equal rectangles are matted once.

    Args:
        rgb: (H, W, 3) uint8.
        rects: rectangles within the picture.
        matter: the matting network.
        side: S, the network's side in pixels; crops are stretched to it.
        quarter_turns: crops are turned so often by 90° counterclockwise before the network sees them.

    Returns:
        For each rectangle its (S, S) uint8 alpha, as the picture is. Of rectangles beyond `MAX_OWN_CROPS` it is a part
        of the whole picture's.
    """
    different = list(dict.fromkeys(rects))
    if len(different) > MAX_OWN_CROPS:
        own, shared = different[: MAX_OWN_CROPS - 1], different[MAX_OWN_CROPS - 1 :]
        frame = whole(rgb.shape[1], rgb.shape[0])
        first = matte_crops(rgb, [*own, frame], matter, side, quarter_turns)
        return first | {rect: _part(first[frame], rect, frame, side) for rect in shared if rect != frame}
    mattes: dict[Rect, NDArray[np.uint8]] = {}
    for start in range(0, len(different), MODEL_MAX_BATCH):
        chunk = different[start : start + MODEL_MAX_BATCH]
        crops = np.empty((len(chunk), side, side, 3), np.uint8)
        for crop, rect in zip(crops, chunk, strict=True):
            crop[:] = np.rot90(_resize(rgb[rect.slices], side), quarter_turns)
        alphas = np.rot90(matter(crops), -quarter_turns, axes=(1, 2))
        mattes.update(zip(chunk, alphas, strict=True))
    return mattes


def _part(matte: NDArray[np.uint8], rect: Rect, frame: Rect, side: int) -> NDArray[np.uint8]:
    """What a matte (S, S) uint8 of the frame shows in a rectangle of it, stretched to (S, S)."""
    to_frame = np.array(
        [
            [rect.width / frame.width, 0, (rect.x1 + rect.width / side / 2) * side / frame.width - 0.5],
            [0, rect.height / frame.height, (rect.y1 + rect.height / side / 2) * side / frame.height - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(matte, to_frame, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def _resize(crop: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Stretch to a square: by means of whole pixels first where it shrinks much, so that thin structures stay."""
    crop = cell_means(crop, max(1, min(crop.shape[:2]) // side))
    return np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
