"""The report of an answer: the picture, its people and cut-outs, the models and the times.

    {"picture": {"width_px", "height_px", "format", "orientation"},
     "subject": "people", "each" or "all",
     "people":  [{"id", "box", "confidence", "milliseconds"}, …],
     "cutouts": [{"id", "people", "box", "confidence", "frame", "size", "media_type", "bytes", "milliseconds"}, …],
     "models":  {"profile", "detector": {"name", "version"}, "matte": {"name", "version", "side_px"}},
     "device":  "cpu",
     "tensorrt": false,
     "milliseconds": {"decode", "detect", "matte", "refine", "encode", "total"},
     "warnings": [{"code", "message", "tier": 3, "details"}, …]}

`people` are the selected ones, in the order of the ``boxes`` and ``scores`` of the answer; a cut-out names the
ids of those in it. With subject 'all' there are none, and the cut-out's box is the whole picture. `subject` is what was
cut out: for 'auto' it is 'people' or 'all'. `frame` is the rectangle of the upright picture, in whole pixels, that a
cut-out covers; `size` is smaller where `max_side_px` was given. Its `confidence` is the lowest of the people in it. Of
the stages, "refine" is the alpha at full size and the estimate of colours on a small copy; "encode" computes colours at
full size, composites and writes the file, strip by strip. A cut-out's milliseconds are its refining and encoding; a
person's are an equal share of these, and of matting.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.decode import Picture
from pipeline.geometry import Box, Rect
from pipeline.notices import Notice
from pipeline.people import Person

STAGES = ("decode", "detect", "matte", "refine", "encode")

MEDIA_TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "mask": "image/png",
    "jpeg": "image/jpeg",
    "layers": "application/zip",
}


@dataclass
class Stopwatch:
    """Sums the time of each stage."""

    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begun

    def milliseconds(self) -> dict[str, float]:
        total = time.perf_counter() - self.started
        return {name: round(taken * 1000, 2) for name, taken in (self.seconds | {"total": total}).items()}


@dataclass(frozen=True)
class Cutout:
    """One finished picture of the answer.

    Attributes:
        id: its place among the answer's images, or the person's id with subject 'each'.
        people: ids of those in it.
        box: the detection box, of all people together.
        confidence: 0 to 1.
        frame: the rectangle of the upright picture that it covers.
        size_wh: its own columns and rows.
        data: the encoded file.
        milliseconds: what refining and encoding it took.
    """

    id: int
    people: tuple[int, ...]
    box: Box
    confidence: float
    frame: Rect
    size_wh: tuple[int, int]
    data: bytes
    milliseconds: float


def build(
    picture: Picture,
    subject: str,
    people: Sequence[Person],
    cutouts: Sequence[Cutout],
    output: str,
    models: dict[str, Any],
    device: str,
    tensorrt: bool,
    milliseconds: dict[str, float],
    notices: Sequence[Notice],
) -> dict[str, Any]:
    """The report as JSON values."""
    spent_ms = {
        index: cutout.milliseconds / len(cutout.people) + milliseconds["matte"] / max(1, len(people))
        for cutout in cutouts
        for index in cutout.people
    }
    return {
        "picture": {
            "width_px": picture.width,
            "height_px": picture.height,
            "format": picture.format,
            "orientation": picture.orientation,
        },
        "subject": subject,
        "people": [
            {
                "id": person.id,
                "box": _rounded(person.box),
                "confidence": round(person.confidence, 4),
                "milliseconds": round(spent_ms.get(person.id, 0.0), 2),
            }
            for person in people
        ],
        "cutouts": [
            {
                "id": cutout.id,
                "people": list(cutout.people),
                "box": _rounded(cutout.box),
                "confidence": round(cutout.confidence, 4),
                "frame": cutout.frame.as_list(),
                "size": list(cutout.size_wh),
                "media_type": MEDIA_TYPES[output],
                "bytes": len(cutout.data),
                "milliseconds": round(cutout.milliseconds, 2),
            }
            for cutout in cutouts
        ],
        "models": models,
        "device": device,
        "tensorrt": tensorrt,
        "milliseconds": milliseconds,
        "warnings": [notice.to_dict() for notice in notices],
    }


def _rounded(box: Box) -> list[float]:
    return [round(value, 2) for value in box]
