"""``/api/person-detection`` and ``/api/background``: find people, and cut the chosen ones out, each alone."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Annotated, Any

import cv2
import numpy as np
from cutaway import Cutout, CutResult
from cutaway.contract.errors import CutawayError, ProcessingTimeout
from fastapi import APIRouter, File, Form, UploadFile
from PIL import Image
from pydantic import BaseModel, Field

from gateway.service.errors import ServiceProblem, error_entry, timestamp
from gateway.service.state import Admitted, ServiceState, State
from gateway.service.uploads import plain, read_base64, read_upload

OUTLINE_SIDE_PX = 512
"""Largest side of the mask that an outline is drawn from: finer than a page shows."""
OUTLINE_TOLERANCE_PX = 1.5
MAX_PERSONS = 20

router = APIRouter(tags=["people"])


class ErrorEntry(BaseModel):
    """What went wrong, and what to do."""

    code: str
    message: str
    tier: int
    user_action: str
    retry_after: float | None
    details: dict[str, Any]


class PeopleFailure(BaseModel):
    """An error of these paths."""

    success: bool = False
    error: ErrorEntry


_TEXTS = {
    400: "refused",
    401: "no such key",
    404: "no such thing, or not configured",
    413: "too large",
    422: "nobody found",
}
_TEXTS |= {429: "limit used up", 500: "a model failed", 502: "another service failed"}
_TEXTS |= {503: "too much to do", 504: "took too long"}
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": PeopleFailure, "description": text} for code, text in _TEXTS.items()
}


class BBox(BaseModel, json_schema_extra={"examples": [{"x1": 212.0, "y1": 80.5, "x2": 640.0, "y2": 1079.0}]}):
    """In pixels of the upright picture."""

    x1: float
    y1: float
    x2: float
    y2: float

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """As the pipeline's option `boxes` takes it."""
        return self.x1, self.y1, self.x2, self.y2


class Person(BaseModel):
    """Somebody in a picture; `outline` is a polygon of x, y in pixels where it was asked for."""

    person_id: int | str
    bbox: BBox
    confidence: float | None = None
    outline: list[tuple[int, int]] | None = None


class Detected(BaseModel):
    """The people of a picture, which is kept under its id."""

    image_id: str
    width: int
    height: int
    persons: list[Person]
    warnings: list[str]


class SelectionOptions(BaseModel):
    """How the chosen people are cut out; `feather_amount` is the Gaussian's σ in pixels."""

    padding: int = Field(default=20, ge=0, le=500)
    output_format: str = Field(default="png", pattern="^(png|webp)$")
    feather_edges: bool = True
    feather_amount: float = Field(default=5, ge=0, le=25)


_SELECTION = {
    "image_id": "uK0m…",
    "selected_person_ids": [0],
    "persons": [{"person_id": 0, "bbox": {"x1": 212, "y1": 80, "x2": 640, "y2": 1079}, "confidence": 0.91}],
    "options": {"padding": 20, "output_format": "png", "feather_edges": True, "feather_amount": 5},
}


class Selection(BaseModel, json_schema_extra={"examples": [_SELECTION]}):
    """Which people of which picture: its id, or the picture as a data URI."""

    image_id: str | None = None
    image_url: str | None = None
    selected_person_ids: list[int | str] = Field(min_length=1, max_length=MAX_PERSONS)
    persons: list[Person] = Field(min_length=1, max_length=100)
    options: SelectionOptions = Field(default_factory=SelectionOptions)


class Dimensions(BaseModel):
    width: int
    height: int


class ProcessedPerson(BaseModel):
    """A person's cut-out, or why there is none."""

    person_id: int | str
    processed_image_url: str | None = None
    processing_time_ms: float | None = None
    dimensions: Dimensions | None = None
    file_size_bytes: int | None = None
    error: ErrorEntry | None = None


class ProcessedData(BaseModel):
    image_id: str
    processed_persons: list[ProcessedPerson]
    total_processing_time_ms: float
    metadata: dict[str, Any]


class Processed(BaseModel):
    """The cut-outs of the chosen people."""

    success: bool
    data: ProcessedData


@router.post("/api/person-detection/detect", responses=FAILURES)
async def detect(
    state: ServiceState,
    caller: Admitted,
    image: Annotated[UploadFile, File(description="JPEG, PNG, WebP or BMP")],
    min_confidence: Annotated[float | None, Form(ge=0.05, le=0.95)] = None,
    outlines: Annotated[bool, Form(description="also a polygon around each, which takes as long as cutting")] = False,
) -> Detected:
    """Find the people of a picture and keep it for `remove-selected-persons`."""
    data = await read_upload(image)
    detection: Any
    polygons: dict[int, list[tuple[int, int]]] = {}
    if outlines:
        given: Any = {"subject": "each", "output": "mask", "padding_px": 4, "max_side_px": OUTLINE_SIDE_PX}
        detection = await state.engine.cut(
            caller.name, data, image.content_type, min_confidence=min_confidence, max_people=100, **given
        )
        polygons = await asyncio.to_thread(_outlines, detection)
    else:
        detection = await state.engine.detect(caller.name, data, image.content_type, min_confidence=min_confidence)
    persons = [
        Person(
            person_id=entry.id,
            bbox=BBox(**dict(zip(("x1", "y1", "x2", "y2"), plain(entry.box), strict=True))),
            confidence=round(entry.score, 4),
            outline=polygons.get(entry.id),
        )
        for entry in detection.report.people
    ]
    image_id = await state.storage.put("uploads", data)
    return Detected(
        image_id=image_id,
        width=detection.report.width_px,
        height=detection.report.height_px,
        persons=persons,
        warnings=[notice.code for notice in detection.warnings],
    )


def _outlines(result: CutResult) -> dict[int, list[tuple[int, int]]]:
    """Person's id → the polygon around the largest part of the matte."""
    return {cutout.id: polygon for cutout in result.cutouts if (polygon := _outline(cutout))}


def _outline(cutout: Cutout) -> list[tuple[int, int]]:
    alpha = cutout.numpy()
    parts, _ = cv2.findContours((alpha >= 128).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not parts:
        return []
    points = cv2.approxPolyDP(max(parts, key=cv2.contourArea), OUTLINE_TOLERANCE_PX, True)[:, 0, :]
    x1, y1, x2, y2 = cutout.frame
    scale = np.array([(x2 - x1) / alpha.shape[1], (y2 - y1) / alpha.shape[0]])
    return [(int(x), int(y)) for x, y in np.round(points * scale + (x1, y1))]


@router.post("/api/background/remove-selected-persons", responses=FAILURES)
async def remove_selected(state: ServiceState, caller: Admitted, selection: Selection) -> Processed:
    """Cut chosen people out, each alone, with the caller's own ids; one person's failure leaves the others."""
    begun = time.monotonic()
    data, image_id = await read_picture(state, selection.image_id, selection.image_url)
    by_id = {str(person.person_id): person for person in selection.persons}
    if unknown := [each for each in selection.selected_person_ids if str(each) not in by_id]:
        action = "Give their boxes in `persons`."
        raise ServiceProblem(400, "INVALID_OPTION", f"Unknown persons: {unknown}.", action, unknown=unknown)
    chosen = [by_id[str(each)] for each in dict.fromkeys(map(str, selection.selected_person_ids))]
    report: dict[str, Any] = {}
    done = await asyncio.gather(*(_one(state, caller.name, data, each, selection.options, report) for each in chosen))
    if all(each.error is not None for each in done):
        raise _joint_failure(done, data)
    metadata = report | {"timestamp": timestamp(time.time())}
    total_ms = round((time.monotonic() - begun) * 1000, 1)
    result = ProcessedData(
        image_id=image_id, processed_persons=list(done), total_processing_time_ms=total_ms, metadata=metadata
    )
    return Processed(success=True, data=result)


async def read_picture(state: State, image_id: str | None, image_url: str | None) -> tuple[bytes, str]:
    """The picture of an id or a data URI, and its id.

    Raises:
        ServiceProblem, InputError: there is none, or both are given.
    """
    if (image_id is None) == (image_url is None):
        message = "Exactly one of image_id and image_url is needed."
        raise ServiceProblem(400, "INVALID_OPTION", message, "Send one of them.")
    if image_id is not None:
        return await state.storage.get(image_id), image_id
    data, _ = read_base64(image_url or "")
    return data, await state.storage.put("uploads", data)


async def _one(
    state: State, caller: str, data: bytes, person: Person, options: SelectionOptions, report: dict[str, Any]
) -> ProcessedPerson:
    given: Any = {
        "subject": "each",
        "boxes": [person.bbox.corners],
        "padding_px": options.padding,
        "output": options.output_format,
    }
    # The specification's amount is the Gaussian's σ, the pipeline's feather twice that.
    given["feather_px"] = round(2 * options.feather_amount) if options.feather_edges else 0
    begun = time.monotonic()
    try:
        result = await state.engine.cut(caller, data, **given)
        cutout = result.cutouts[0]
        stored = await state.storage.put("cutouts", cutout.image)
    except (CutawayError, ServiceProblem) as error:
        return ProcessedPerson(person_id=person.person_id, error=ErrorEntry(**error_entry(error)))
    report |= {"model": f"birefnet ({result.report.profile})", "device": result.report.device}
    with Image.open(io.BytesIO(cutout.image)) as image:
        width, height = image.size
    return ProcessedPerson(
        person_id=person.person_id,
        processed_image_url=f"/api/images/{stored}",
        processing_time_ms=round((time.monotonic() - begun) * 1000, 1),
        dimensions=Dimensions(width=width, height=height),
        file_size_bytes=len(cutout.image),
    )


def _joint_failure(done: list[ProcessedPerson], data: bytes) -> Exception:
    """The error of a request in which nobody could be cut out."""
    from cutaway.contract.errors import ERRORS_BY_CODE, InferenceError

    first = done[0].error
    assert first is not None
    failed = [each.person_id for each in done]
    if first.code == "BIREFNET_TIMEOUT":
        details = {"failed_person_ids": failed, "timeout_seconds": 30, "image_size_bytes": len(data)}
        return ProcessingTimeout(first.message, details=details | {"max_size_recommended": "1920x1080"})
    kind = ERRORS_BY_CODE.get(first.code, InferenceError)
    return kind(first.message, details=first.details | {"failed_person_ids": failed}, retry_after=first.retry_after)
