"""The report that comes with every answer, read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cutaway.contract.limits import Tier
from cutaway.wire import malformed

MAX_REPORT_BYTES = 4 * 1024 * 1024
MAX_NUMBER = 2**31

Box = tuple[float, float, float, float]
Frame = tuple[int, int, int, int]


@dataclass(frozen=True)
class Notice:
    """A warning inside a successful answer.

    Attributes:
        code: stable, for programs.
        message: one sentence.
        tier: 3 or 4, see :class:`cutaway.contract.limits.Tier`.
        details: figures that belong to it.
    """

    code: str
    message: str
    tier: Tier
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PersonEntry:
    """Somebody who was chosen.

    Attributes:
        id: rank by size, 0 for the largest; what the option `select` takes.
        box: x1, y1, x2, y2 in pixels of the upright picture.
        score: the detector's confidence, 0 to 1.
    """

    id: int
    box: Box
    score: float


@dataclass(frozen=True)
class CutoutEntry:
    """What the report says about one cut-out. Boxes and frames are in pixels of the upright picture.

    Attributes:
        id: the person's id for subject "each", else 0.
        people: ids of the people in it; none for subject "all".
        box: x1, y1, x2, y2 around all that was detected in it.
        score: the confidence of the least certain person in it, 0 to 1.
        frame: x1, y1, x2, y2 of the rectangle that the cut-out covers, in whole pixels.
        file_bytes: length of the encoded file.
    """

    id: int
    people: tuple[int, ...]
    box: Box
    score: float
    frame: Frame
    file_bytes: int


@dataclass(frozen=True)
class Report:
    """A server's report.

    Attributes:
        width_px: width of the upright picture.
        height_px: height of the upright picture.
        orientation: the EXIF orientation that was applied, 1 to 8; 1 changes nothing.
        people: those chosen, in the order of boxes and scores; none for subject "all".
        cutouts: one entry per cut-out; none for a detection.
        profile: the pair of models, such as "nano".
        models: what the server tells about its models' names and versions.
        device: what ran the models, such as "cpu" or a GPU's name.
        timings_ms: milliseconds per stage (decode, detect, matte, refine, encode) and "total".
        warnings: what is worth knowing about this result.
        raw: the whole report as it came.
    """

    width_px: int
    height_px: int
    orientation: int
    people: tuple[PersonEntry, ...]
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
    raw = _mapping(raw, "its report")
    picture = _mapping(raw.get("picture"), "its report's picture")
    width = _whole(picture.get("width_px"), "the picture's width", least=1)
    height = _whole(picture.get("height_px"), "the picture's height", least=1)
    orientation = picture.get("orientation")
    models = _or_empty(raw.get("models"))
    return Report(
        width_px=width,
        height_px=height,
        orientation=orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1,
        people=tuple(_person(item) for item in _list(raw.get("people"), "its report's people")),
        cutouts=tuple(_cutout(item, width, height) for item in _list(raw.get("cutouts"), "its report's cut-outs")),
        profile=_text(models.get("profile")),
        models=models,
        device=_text(raw.get("device")),
        timings_ms={stage: float(ms) for stage, ms in _or_empty(raw.get("milliseconds")).items() if _is_number(ms)},
        warnings=_notices(raw.get("warnings")),
        raw=raw,
    )


def _person(item: Any) -> PersonEntry:
    item = _mapping(item, "a person")
    return PersonEntry(_whole(item.get("id"), "a person's id"), _box(item.get("box")), _score(item.get("confidence")))


def _cutout(item: Any, width: int, height: int) -> CutoutEntry:
    item = _mapping(item, "a cut-out")
    corners = _four(item.get("frame"), "a cut-out's frame")
    x1, y1, x2, y2 = (int(corner) for corner in corners)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height) or any(corner % 1 for corner in corners):
        raise malformed("a cut-out's frame does not lie in the picture")
    return CutoutEntry(
        id=_whole(item.get("id"), "a cut-out's id"),
        people=tuple(_whole(id_, "a person's id") for id_ in _list(item.get("people"), "a cut-out's people")),
        box=_box(item.get("box")),
        score=_score(item.get("confidence")),
        frame=(x1, y1, x2, y2),
        file_bytes=_whole(item.get("bytes"), "a cut-out's length", least=1),
    )


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
        raise malformed(f"{what} is no object")
    return value


def _or_empty(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise malformed(f"{what} are no list")
    return value


def _whole(value: Any, what: str, *, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_NUMBER:
        raise malformed(f"{what} is no whole number")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER


def _four(value: Any, what: str) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(side) for side in value):
        raise malformed(f"{what} is not of four numbers")
    x1, y1, x2, y2 = (float(side) for side in value)
    return x1, y1, x2, y2


def _box(value: Any) -> Box:
    return _four(value, "a box")


def _score(value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise malformed("a confidence is not between 0 and 1")
    return float(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
