"""The report of every answer, validated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from cutaway.contract.limits import Tier
from cutaway.transports.failures import malformed

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
    """A selected person.

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
    """The report's entry for one cut-out; see :class:`cutaway.Cutout`. `file_bytes` is the size of the encoded file."""

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
        width_px, height_px: size of the upright picture.
        orientation: the EXIF orientation that was applied, 1 to 8; 1 changes nothing.
        people: those chosen, in the order of boxes and scores; none for subject "all".
        cutouts: one entry per cut-out; none for a detection.
        profile: the pair of models, such as "nano".
        models: the models' names and versions.
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
    picture = _of(raw, "picture", dict)
    width, height = (_whole(picture, side, least=1) for side in ("width_px", "height_px"))
    orientation, models, timings = picture.get("orientation"), _or_empty(raw, "models"), _or_empty(raw, "milliseconds")
    warnings = raw.get("warnings")
    return Report(
        width_px=width,
        height_px=height,
        orientation=orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1,
        people=tuple(
            PersonEntry(_whole(item, "id"), _box(item, "box"), _score(item)) for item in _of(raw, "people", list)
        ),
        cutouts=tuple(_cutout(item, width, height) for item in _of(raw, "cutouts", list)),
        profile=_text(models, "profile"),
        models=models,
        device=_text(raw, "device"),
        timings_ms={stage: float(ms) for stage, ms in timings.items() if _is_number(ms)},
        warnings=tuple(
            Notice(
                code=_text(item, "code"),
                message=_text(item, "message"),
                tier=Tier.LOW if item.get("tier") == Tier.LOW else Tier.MEDIUM,
                details=_or_empty(item, "details"),
            )
            for item in (warnings if isinstance(warnings, list) else ())
            if isinstance(item, dict)
        ),
        raw=raw,
    )


def _cutout(item: Any, width: int, height: int) -> CutoutEntry:
    corners = _box(item, "frame")
    x1, y1, x2, y2 = (int(corner) for corner in corners)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height) or any(corner % 1 for corner in corners):
        raise malformed("a cut-out's frame does not lie in the picture")
    people = _of(item, "people", list)
    return CutoutEntry(
        id=_whole(item, "id"),
        people=tuple(_whole({"id": each}, "id") for each in people),
        box=_box(item, "box"),
        score=_score(item),
        frame=(x1, y1, x2, y2),
        file_bytes=_whole(item, "bytes", least=1),
    )


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _of(item: Any, name: str, kind: type) -> Any:
    found = item.get(name) if isinstance(item, dict) else None
    if not isinstance(found, kind):
        raise malformed(f"its report has no {name!r} where there has to be one")
    return found


def _or_empty(item: dict[str, Any], name: str) -> dict[str, Any]:
    found = item.get(name)
    return found if isinstance(found, dict) else {}


def _text(item: dict[str, Any], name: str) -> str:
    found = item.get(name)
    return found if isinstance(found, str) else ""


def _whole(item: Any, name: str, *, least: int = 0) -> int:
    found = _of(item, name, int)
    if isinstance(found, bool) or not least <= found <= MAX_NUMBER:
        raise malformed(f"its report's {name!r} is no whole number from {least} on")
    return cast(int, found)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER


def _box(item: Any, name: str) -> Box:
    sides = _of(item, name, list)
    if len(sides) != 4 or not all(_is_number(side) for side in sides):
        raise malformed(f"its report's {name!r} is not of four numbers")
    x1, y1, x2, y2 = map(float, sides)
    return x1, y1, x2, y2


def _score(item: Any) -> float:
    found = item.get("confidence") if isinstance(item, dict) else None
    if not _is_number(found) or not 0 <= found <= 1:  # type: ignore[operator]
        raise malformed("a confidence is not between 0 and 1")
    return float(found)  # type: ignore[arg-type]
