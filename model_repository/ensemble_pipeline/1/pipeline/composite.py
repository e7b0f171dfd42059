"""Compositing of a cut-out onto its background, in straight alpha, strip by strip."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Rect
from pipeline.pixels import Pixels

_STRIP_PIXELS = 1 << 20
_BLUR_DETAIL_PX = 4
"""A blur is computed on a copy in which its standard deviation is still about this many pixels."""


def on_nothing(colours: Pixels, alpha: NDArray[np.uint8], region: Rect, frame: Rect) -> Pixels:
    """A transparent cut-out.

    Args:
        colours: (h, w, 3) uint8 of the region.
        alpha: (h, w) uint8 of the region.
        region: what they cover; the rest of the frame is empty.
        frame: what the cut-out covers.

    Returns:
        (frame.height, frame.width, 4) uint8 RGBA.
    """
    view = region.within(frame)
    columns = view.seen_from(region).slices[1]
    # The colour at a corner of the region: usually beyond the soft edge, where colours are flat already.
    nothing = np.array([*colours.rows(slice(0, 1))[0, 0], 0], np.uint8).view(np.uint32)

    def rows(part: slice) -> NDArray[np.uint8]:
        cutout = np.empty((part.stop - part.start, frame.width, 4), np.uint8)
        if view != frame:
            cutout.view(np.uint32)[:] = nothing
        target, source = _meeting(part, view, region, frame)
        if source.start < source.stop:
            inner = cutout[target, view.seen_from(frame).slices[1]]
            cv2.cvtColor(colours.rows(source)[:, columns], cv2.COLOR_RGB2RGBA, dst=inner)
            cv2.insertChannel(alpha[source, columns], inner, 3)
        return cutout

    return Pixels(frame.height, frame.width, 4, rows)


def _meeting(part: slice, view: Rect, region: Rect, frame: Rect) -> tuple[slice, slice]:
    """Rows of the frame that a view of the region covers: as indices into those rows, and into the region."""
    top = max(part.start, view.y1 - frame.y1)
    bottom = max(top, min(part.stop, view.y2 - frame.y1))
    return slice(top - part.start, bottom - part.start), slice(*(row + frame.y1 - region.y1 for row in (top, bottom)))


def spread(alpha: NDArray[np.uint8], region: Rect, frame: Rect) -> NDArray[np.uint8]:
    """A region's alpha in a frame, (frame.height, frame.width) uint8; 0 outside the region."""
    if region == frame:
        return alpha
    result = np.zeros((frame.height, frame.width), np.uint8)
    view = region.within(frame)
    if not view.empty:
        result[view.seen_from(frame).slices] = alpha[view.seen_from(region).slices]
    return result


def on_background(colours: Pixels, alpha: NDArray[np.uint8], region: Rect, frame: Rect, background: Pixels) -> Pixels:
    """Composite a cut-out onto an opaque background (frame.height, frame.width, 3) uint8."""
    view = region.within(frame)
    columns = view.seen_from(region).slices[1]

    def rows(part: slice) -> NDArray[np.uint8]:
        result = np.array(background.rows(part))
        target, source = _meeting(part, view, region, frame)
        if source.start < source.stop:
            _paint(
                result[target, view.seen_from(frame).slices[1]],
                colours.rows(source)[:, columns],
                np.ascontiguousarray(alpha[source, columns]),
            )
        return result

    return Pixels(frame.height, frame.width, 3, rows)


def _paint(target: NDArray[np.uint8], colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> None:
    """Put colours (h, w, 3) uint8 with an alpha (h, w) uint8 onto a target (h, w, 3) uint8, in place."""
    rows, columns = np.nonzero((alpha > 0) & (alpha < 255))
    weight = alpha[rows, columns].astype(np.float32)[:, None] / 255
    mixed = colours[rows, columns] * weight + target[rows, columns] * (1 - weight)
    np.copyto(target, colours, where=(alpha == 255)[..., None])
    target[rows, columns] = np.rint(mixed).astype(np.uint8)


def plain(colour_rgb: tuple[int, int, int], frame: Rect) -> Pixels:
    """A background of one colour, (frame.height, frame.width, 3) uint8."""

    def rows(part: slice) -> NDArray[np.uint8]:
        return solid(colour_rgb, Rect(frame.x1, part.start, frame.x2, part.stop))

    return Pixels(frame.height, frame.width, 3, rows)


def solid(colour_rgb: tuple[int, int, int], frame: Rect) -> NDArray[np.uint8]:
    background = np.empty((frame.height, frame.width, 3), np.uint8)
    background[:] = colour_rgb
    return background


def blurred(
    rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], region: Rect, frame: Rect, blur_px: int
) -> NDArray[np.uint8]:
    """The blurred background, from pixels of the background alone: the cut-out's colours do not bleed into it.

    Args:
        rgb: (H, W, 3) uint8, the whole picture.
        alpha: (h, w) uint8 of the region: the cut-out, which is left out.
        region: the rectangle that `alpha` covers.
        frame: the part of the picture to return.
        blur_px: the Gaussian's standard deviation (as CSS's blur), pixels.

    Returns:
        (frame.height, frame.width, 3) uint8.
    """
    factor = max(1, blur_px // _BLUR_DETAIL_PX)
    margin = -(-3 * blur_px // factor) * factor
    result = np.empty((frame.height, frame.width, 3), np.uint8)
    rows = max(64, _STRIP_PIXELS // frame.width)
    whole_picture = Rect(0, 0, rgb.shape[1], rgb.shape[0])
    for top in range(frame.y1, frame.y2, rows):
        strip = Rect(frame.x1, top, frame.x2, min(top + rows, frame.y2))
        around = strip.grown(margin).within(whole_picture)
        behind = _behind(rgb[around.slices], spread(alpha, region, around), blur_px, factor)
        result[strip.seen_from(frame).slices] = behind[strip.seen_from(around).slices]
    return result


def _behind(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], blur_px: int, factor: int) -> NDArray[np.uint8]:
    height, width = alpha.shape
    small_wh = max(1, -(-width // factor)), max(1, -(-height // factor))
    seen = 1 - cv2.resize(alpha, small_wh, interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    # A small weight, so that the mean is defined where a cut-out covers all of the window.
    seen = np.maximum(seen, 1e-4)
    colours = cv2.resize(rgb, small_wh, interpolation=cv2.INTER_AREA) * seen
    deviation = blur_px / factor
    total = cv2.GaussianBlur(colours, (0, 0), deviation, borderType=cv2.BORDER_REPLICATE)
    weight = cv2.GaussianBlur(seen, (0, 0), deviation, borderType=cv2.BORDER_REPLICATE)
    mean = np.clip(np.rint(total / weight[..., None]), 0, 255).astype(np.uint8)
    return np.asarray(cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
