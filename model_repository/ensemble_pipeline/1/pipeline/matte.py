"""Crops of a picture → small alpha mattes, in as few model calls as the batch size allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from cutaway.contract.limits import MODEL_MAX_BATCH
from numpy.typing import NDArray

from pipeline.geometry import Rect

Matter = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""(N, S, S, 3) uint8 RGB → (N, S, S) uint8 alpha, N at most `MODEL_MAX_BATCH`."""


def matte_crops(
    rgb: NDArray[np.uint8], rects: Sequence[Rect], matter: Matter, side: int
) -> dict[Rect, NDArray[np.uint8]]:
    """Matte rectangles of a picture; equal rectangles are matted once.

    Args:
        rgb: (H, W, 3) uint8.
        rects: rectangles within the picture.
        matter: the matting network.
        side: S, the network's side in pixels; crops are stretched to it.

    Returns:
        For each rectangle its (S, S) uint8 alpha.
    """
    different = list(dict.fromkeys(rects))
    mattes: dict[Rect, NDArray[np.uint8]] = {}
    for start in range(0, len(different), MODEL_MAX_BATCH):
        chunk = different[start : start + MODEL_MAX_BATCH]
        crops = np.empty((len(chunk), side, side, 3), np.uint8)
        for crop, rect in zip(crops, chunk, strict=True):
            crop[:] = _resize(rgb[rect.slices], side)
        mattes.update(zip(chunk, matter(crops), strict=True))
    return mattes


def _resize(crop: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Stretch to a square: by means of whole pixels first where it shrinks much, so that thin structures stay."""
    height, width = crop.shape[:2]
    step = min(height, width) // side
    if step > 1:
        rows, columns = height // step, width // step
        whole_cells = crop[: rows * step, : columns * step]
        crop = np.asarray(cv2.resize(whole_cells, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
