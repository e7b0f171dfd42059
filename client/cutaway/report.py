"""The report that comes with every answer, read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cutaway.limits import Tier
from cutaway.wire import malformed

MAX_REPORT_BYTES = 4 * 1024 * 1024

Box = tuple[float, float, float, float]
Frame = tuple[int, int, int, int]


@dataclass(frozen=True)
class Notice:
    """A warning inside a successful answer.

    Attributes:
        code: stable, for programs.
        message: one sentence.
        tier: 3 or 4, see :class:`cutaway.limits.Tier`.
        details: figures that belong to it.
    """

    code: str
    message: str
    tier: Tier
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CutoutEntry:
    """What the report says about one cut-out. Boxes and frames are in pixels of the upright picture.

    Attributes:
        id: the person's number, 0 for the largest; of several people together, the first one's.
        box: x1, y1, x2, y2 of what was detected.
        score: the detector's confidence, 0 to 1.
        frame: x1, y1, x2, y2 of the rectangle that the cut-out covers.
    """

    id: int
    box: Box
    score: float
    frame: Frame


@dataclass(frozen=True)
class Report:
    """A server's report.

    Attributes:
        width_px: width of the upright picture.
        height_px: height of the upright picture.
        orientation: the EXIF orientation that was applied, 1 to 8; 1 changes nothing.
        cutouts: one entry per cut-out; for a detection, one per person.
        profile: the pair of models, such as "nano".
        models: model name → version and whatever else the server tells about it.
        device: what ran the models, such as "cpu" or a GPU's name.
        timings_ms: milliseconds per stage, and "total".
        warnings: what is worth knowing about this result.
        raw: the whole report as it came.
    """

    width_px: int
    height_px: int
    orientation: int
    cutouts: tuple[CutoutEntry, ...]
    profile: str
    models: Mapping[str, Any]
    device: str
    timings_ms: Mapping[str, float]
    warnings: tuple[Notice, ...]
    raw: Mapping[str, Any] = field(repr=False)


def parse_report(data: bytes) -> Report:
    """Read a report.

    Raises:
        InferenceError: it is not what a Cutaway server sends. Unknown fields are kept in `raw`; device, models,
            timings and warnings may be missing, since no result depends on them.
    """
    if len(data) > MAX_REPORT_BYTES:
        raise malformed("its report is too long")
    try:
        raw = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise malformed("its report is no JSON") from None
    raw = _mapping(raw, "report")
    picture = _mapping(raw.get("picture"), "picture")
    width, height = _whole(picture.get("width_px"), "width"), _whole(picture.get("height_px"), "height")
    orientation = picture.get("orientation", 1)
    cutouts = raw.get("cutouts")
    if not isinstance(cutouts, list):
        raise malformed("its report has no list of cut-outs")
    return Report(
        width_px=width,
        height_px=height,
        orientation=orientation if orientation in range(1, 9) else 1,
        cutouts=tuple(_entry(item, width, height) for item in cutouts),
        profile=_text(raw.get("profile")),
        models=_or_empty(raw.get("models")),
        device=_text(raw.get("device")),
        timings_ms={str(stage): float(ms) for stage, ms in _or_empty(raw.get("timings_ms")).items() if _is_number(ms)},
        warnings=_notices(raw.get("warnings")),
        raw=raw,
    )


def _entry(item: Any, width: int, height: int) -> CutoutEntry:
    item = _mapping(item, "cut-out")
    box, frame = item.get("box"), item.get("frame")
    number, score = item.get("id"), item.get("score")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise malformed("a cut-out has no id")
    if not _is_number(score):
        raise malformed("a cut-out has no score")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
        raise malformed("a cut-out has no box")
    if (
        not isinstance(frame, list)
        or len(frame) != 4
        or not all(isinstance(side, int) and not isinstance(side, bool) for side in frame)
        or not (0 <= frame[0] < frame[2] <= width and 0 <= frame[1] < frame[3] <= height)
    ):
        raise malformed("a cut-out's frame does not lie in the picture")
    x1, y1, x2, y2 = (float(side) for side in box)
    return CutoutEntry(number, (x1, y1, x2, y2), float(score), (frame[0], frame[1], frame[2], frame[3]))


def _notices(items: Any) -> tuple[Notice, ...]:
    if not isinstance(items, list):
        return ()
    return tuple(
        Notice(
            code=_text(item.get("code")),
            message=_text(item.get("message")),
            tier=Tier.LOW if item.get("tier") == Tier.LOW else Tier.MEDIUM,
            details=_or_empty(item.get("details")),
        )
        for item in items
        if isinstance(item, dict)
    )


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise malformed(f"its report has no {what}" if what != "report" else "its report is no object")
    return value


def _or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
        raise malformed(f"its report has no {what} of the picture")
    return value


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12 and math.isfinite(value)
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
