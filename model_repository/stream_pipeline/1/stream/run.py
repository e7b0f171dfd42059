"""The stream pipeline for one frame, with the detector as a callable."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from cutaway.contract.errors import InvalidFormat, RequestCancelled, ServiceError
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.limits import STREAM_LIMITS, UNTOUCHED
from numpy.typing import NDArray
from pipeline.decode import decode
from pipeline.notices import Notice
from pipeline.report import Stopwatch

from stream.alpha import alpha_of
from stream.backdrop import put_before
from stream.fit import Fit, fill
from stream.people import find, mask_of
from stream.states import State

STAGES = ("decode", "detect", "mask", "composite", "encode")

Detector = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""(1, height, width, 3) uint8 RGB → the outputs of ``yolov8_seg`` by name, each with 1 in front."""


@dataclass(frozen=True)
class Answer:
    """The answer to one frame.

    Attributes:
        frame: (H, W, 3) uint8 in the order of the stream's channels.
        alpha: (H, W) uint8.
        jpeg: the frame as a JPEG; empty where it was not requested.
        report: JSON values, in the form of `pipeline.report` without cut-outs, and whether the frame is untouched.
    """

    frame: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    jpeg: bytes
    report: dict[str, Any]


def run(
    given: NDArray[np.uint8] | bytes,
    state: State,
    detector: Detector,
    fit_of: Callable[[int, int], Fit],
    wanted: Collection[str],
) -> Answer:
    """Composite a frame's people onto the stream's background.

    Where the detector fails, the frame is returned untouched with a warning in the report.

    Args:
        given: a raw frame (H, W, 3) uint8, or a file.
        state: the stream's, updated here.
        detector: finds people.
        fit_of: placement in the detector's input of a frame with a width and height.
        wanted: names of the requested outputs; "jpeg" is only encoded where it is among them.

    Raises:
        InputError: it is no supported frame.
        RequestCancelled: by the detector, where the caller cancelled the request.
    """
    watch = Stopwatch(seconds=dict.fromkeys(STAGES, 0.0))
    options = state.options
    swap = options.channels == "bgr"
    with watch.stage("decode"):
        frame = _decoded(given, swap)
    height, width = frame.shape[:2]
    state.backdrop.fit(width, height)
    warnings: list[Notice] = []
    people: list[dict[str, Any]] = []
    fit = fit_of(width, height)
    try:
        with watch.stage("detect"):
            canvas = fill(fit, frame, swap=swap)
            raw = {name: values[0] for name, values in detector(canvas[None]).items()}
    except RequestCancelled:
        raise
    except ServiceError as error:
        warnings.append(Notice(UNTOUCHED, "The detector failed: the frame came back as it was.", {"code": error.code}))
        alpha, made = np.full((height, width), 255, np.uint8), frame
    else:
        with watch.stage("mask"):
            found = find(raw, fit, options.min_confidence, state.known)
            state.known = found.boxes
            rows, columns = raw["prototypes"].shape[1:]
            small = cv2.resize(canvas, (columns, rows), interpolation=cv2.INTER_AREA)
            mask = state.smoother.next(mask_of(found, fit, rows, columns), np.asarray(small, np.uint8))
            alpha = alpha_of(mask, fit, width, height)
        with watch.stage("composite"):
            made = put_before(frame, alpha, state.backdrop.behind(frame, alpha))
        people = _people(found.boxes, found.scores, fit, width, height)
    jpeg = b""
    if "jpeg" in wanted:
        with watch.stage("encode"):
            untouched_file = bool(warnings) and isinstance(given, bytes) and given.startswith(b"\xff\xd8")
            jpeg = bytes(given) if untouched_file else _jpeg(made, swap, options.quality)
    report = {
        "picture": {"width_px": width, "height_px": height, "orientation": 1},
        "people": people,
        "cutouts": [],
        "untouched": bool(warnings),
        "milliseconds": watch.milliseconds(),
        "warnings": [notice.to_dict() for notice in warnings],
    }
    return Answer(made, alpha, jpeg, report)


def _decoded(given: NDArray[np.uint8] | bytes, swap: bool) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 in the order of the stream's channels."""
    if isinstance(given, bytes):
        check_picture(given, limits=STREAM_LIMITS)
        rgb = decode(given).rgb
        return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8) if swap else rgb
    if given.ndim != 3 or given.shape[2] != 3:
        raise InvalidFormat(
            f"A raw frame is (height, width, 3), not {given.shape}.",
            details={"supported": ["height × width × 3, uint8"], "received": str(given.shape)},
        )
    check_dimensions(PictureHeader("raw", given.shape[1], given.shape[0]), STREAM_LIMITS)
    return np.ascontiguousarray(given)


def _people(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], fit: Fit, width: int, height: int
) -> list[dict[str, Any]]:
    """People's boxes in pixels of the frame, best first; ids are positions in this frame's list alone."""
    scale = np.array([width / fit.inner_width, height / fit.inner_height] * 2)
    in_frame = (boxes - np.array([fit.left, fit.top] * 2)) * scale
    in_frame = np.clip(in_frame, 0, [width, height, width, height])
    return [
        {"id": place, "box": [round(float(value), 1) for value in box], "confidence": round(float(score), 4)}
        for place, (box, score) in enumerate(zip(in_frame, scores, strict=True))
    ]


def _jpeg(frame: NDArray[np.uint8], swap: bool, quality: int) -> bytes:
    bgr = frame if swap else cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    done, file = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return file.tobytes()
