"""The report of every answer, validated: the types of its entries' fields and a table of ranges drive one reader."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from cutaway.contract.limits import Tier
from cutaway.transports.failures import malformed

MAX_REPORT_BYTES = 4 * 1024 * 1024
MAX_NUMBER = 2**31

Box = tuple[float, float, float, float]
Frame = tuple[int, int, int, int]


@dataclass(frozen=True)
class Notice:
    """A warning inside a successful answer: a stable `code` for programs, a `message` of one sentence, its `tier` (3 or
    4) and figures that belong to it."""

    code: str
    message: str
    tier: Tier = Tier.MEDIUM
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PersonEntry:
    """A selected person: `id` is the rank by size, 0 for the largest, as `select` takes it; `box` x1, y1, x2, y2 in
    pixels of the upright picture; `score` the detector's confidence, 0 to 1; `milliseconds` spent on it."""

    id: int
    box: Box
    score: float
    milliseconds: float | None = None


@dataclass(frozen=True)
class CutoutEntry:
    """The entry of one cut-out, see :class:`cutaway.Cutout`; `file_bytes` is its file's length and `size` its width and
    height in pixels, where they may be smaller than its frame's."""

    id: int
    people: tuple[int, ...]
    box: Box
    score: float
    frame: Frame
    file_bytes: int
    size: tuple[int, int] | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Report:
    """A server's report on the upright picture: its size, the EXIF `orientation` that was applied (1 to 8, 1 for none),
    the chosen `people` in the order of boxes and scores, an entry per cut-out, `subject` ("people", "each" or "all"),
    names and versions of the `models`, the `device` that ran them ("cpu" or a GPU's name) and whether as `tensorrt`
    plans, `timings_ms` per stage and in "total", `warnings`, and `raw`, the whole report as it came."""

    width_px: int
    height_px: int
    people: tuple[PersonEntry, ...]
    cutouts: tuple[CutoutEntry, ...]
    raw: Mapping[str, Any] = field(repr=False)
    orientation: int = 1
    subject: str = "people"
    models: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    tensorrt: bool = False
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[Notice, ...] = ()

    @property
    def profile(self) -> str:
        """The pair of models, such as "nano"."""
        return str(self.models.get("profile", ""))


_FIELDS: dict[str, tuple[str, float, float]] = {
    **{name: (name, 1, MAX_NUMBER) for name in ("width_px", "height_px", "size")},
    **{name: (name, 0, MAX_NUMBER) for name in ("id", "people", "frame")},
    "orientation": ("orientation", 1, 8),
    "score": ("confidence", 0, 1),
    "file_bytes": ("bytes", 1, MAX_NUMBER),
    "timings_ms": ("milliseconds", 0, MAX_NUMBER),
}
"""Attribute → name in JSON, and the range of its numbers, where these are not the same and any."""

_type_hints = functools.cache(get_type_hints)


def parse_report(data: bytes) -> Report:
    """Read a report, or InferenceError. What has a default may be anything, since no result depends on it."""
    if len(data) > MAX_REPORT_BYTES:
        raise malformed("its report is too long")
    try:
        raw = json.loads(data, parse_constant=int)  # NaN and Infinity are no JSON, nor whole numbers
        report: Report = _entry(Report, {**raw["picture"], **raw, "raw": raw})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise malformed(f"its report cannot be read: {error}") from None
    for cutout in report.cutouts:
        x1, y1, x2, y2 = cutout.frame
        width, height = cutout.size or (1, 1)
        if not (x1 + width <= x2 <= report.width_px and y1 + height <= y2 <= report.height_px):
            raise malformed("a cut-out's frame does not lie in the picture, or is smaller than the cut-out")
    return report


def _entry(kind: Any, item: Any) -> Any:
    """An object of JSON as a dataclass; whatever is wrong with fields that have a default, they keep it."""
    found: dict[str, Any] = {}
    for each in fields(kind):
        name, least, most = _FIELDS.get(each.name, (each.name, -MAX_NUMBER, MAX_NUMBER))
        try:
            found[each.name] = _read(_type_hints(kind)[each.name], dict.get(item, name), least, most)
        except (ValueError, TypeError) as error:
            if each.default is MISSING and each.default_factory is MISSING:
                raise ValueError(f"{name}: {error}") from None
    return kind(**found)


def _read(kind: Any, value: Any, least: float, most: float) -> Any:
    """A value of JSON as a type of this module's fields."""
    parts = get_args(kind)
    if kind is Any:
        return value
    if kind is Tier:
        return Tier(value)
    if is_dataclass(kind):
        return _entry(kind, value)
    if type(None) in parts:
        return _read(parts[0], value, least, most)
    json_type = {tuple: list, Mapping: dict}.get(get_origin(kind), (int, float) if kind is float else kind)
    if not isinstance(value, json_type) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"no {kind}")
    if isinstance(value, dict):
        return {name: _read(parts[1], item, least, most) for name, item in value.items()}
    if isinstance(value, list):
        kinds = parts[:1] * len(value) if ... in parts else parts
        return tuple(_read(each, item, least, most) for each, item in zip(kinds, value, strict=True))
    if kind in (int, float) and not least <= value <= most:
        raise ValueError(f"not from {least} to {most}")
    return kind(value)
