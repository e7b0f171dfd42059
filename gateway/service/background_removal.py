"""``/api/background-removal``: one picture, several, or in the background; and health."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from cutaway import CutResult, __version__
from cutaway.contract.errors import CutawayError
from cutaway.contract.limits import CUT_MANY_JOBS
from fastapi import APIRouter, Depends, File, Form, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from gateway.service.engine import Engine
from gateway.service.errors import ServiceProblem, detail_form
from gateway.service.jobs import FINISHED, Work
from gateway.service.observing import carried
from gateway.service.state import Admitted, ServiceState, State
from gateway.service.storage import Storage
from gateway.service.uploads import data_uri, download_name, option_fields, read_upload

SERVICE = "BiRefNet Background Removal"
SMOOTHING_FEATHER_PX = 2

router = APIRouter(prefix="/api/background-removal", tags=["background removal"])


class Failure(BaseModel, extra="allow"):
    """An error: a sentence, a stable code, and figures by code."""

    detail: str = Field(examples=["File size exceeds 10MB. 11,534,336 bytes are more than the 10,485,760 allowed."])
    error_code: str = Field(examples=["FILE_TOO_LARGE"])


class ProcessingInfo(BaseModel):
    """What was done to a picture."""

    original_size: str = Field(examples=["1920x1080"])
    output_size: str = Field(examples=["1920x1080"])
    background_removed: bool
    edge_smoothing_applied: bool
    processing_time_ms: float
    model_version: str
    tensorrt_enabled: bool
    device: str
    subject: str
    people: int
    warnings: list[str]


class Removed(BaseModel):
    """The picture as a data URI."""

    success: bool
    processed_image: str = Field(examples=["data:image/png;base64,iVBORw0KGgo…"])
    processing_info: ProcessingInfo


class Submitted(BaseModel):
    """Jobs that have begun."""

    task_id: str
    status: Literal["processing"]
    check_url: str
    progress_url: str
    task_ids: list[str]


class JobStatus(BaseModel):
    """Where a job is; `result` has the picture's URL and its `processing_info`."""

    task_id: str
    status: Literal["queued", "processing", "completed", "failed"]
    stage: str
    percentage: int
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class Metrics(BaseModel):
    """Of the last hour."""

    avg_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    requests_last_hour: int


class Health(BaseModel):
    """Whether the service can cut pictures out."""

    status: Literal["healthy", "degraded", "unhealthy"]
    service: str
    version: str
    model: str
    device: str
    tensorrt_enabled: bool
    gpu_memory_free_mb: float | None
    model_files_status: dict[str, str]
    performance_metrics: Metrics


_TEXTS = {
    400: "The picture or an option is refused.",
    401: "An API key is missing or not known.",
    404: "There is no such thing.",
    413: "The body is too large.",
    422: "Nobody was found.",
    429: "The caller's limit is used up.",
    500: "A model failed.",
    503: "The service has too much to do, or a part of it is away.",
    504: "The picture took too long.",
}
FAILURES: dict[int | str, dict[str, Any]] = {code: {"model": Failure, "description": t} for code, t in _TEXTS.items()}
PICTURE = {"schema": {"type": "string", "format": "binary"}}
_PICTURES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The cut-out, or with return_base64 the JSON.",
        "content": {"image/png": PICTURE, "image/webp": PICTURE, "image/jpeg": PICTURE, "application/zip": PICTURE},
        "model": Removed,
    }
}
Options = Annotated[dict[str, str], Depends(option_fields())]
Smoothing = Annotated[bool, Form(description="soften the edge by two pixels")]


def with_defaults(options: dict[str, str], smoothing: bool) -> dict[str, Any]:
    """This path's own defaults: the whole picture's subject, and the edge softened."""
    return {"subject": "all", "feather_px": SMOOTHING_FEATHER_PX if smoothing else 0} | options


@router.post("/remove", responses=_PICTURES | FAILURES, response_class=Response, response_model=None)
async def remove(
    state: ServiceState,
    caller: Admitted,
    image: Annotated[UploadFile, File(description="JPEG, PNG, WebP or BMP")],
    options: Options,
    smoothing: Smoothing = True,
    return_base64: Annotated[bool, Form(description="answer with JSON")] = False,
) -> Response:
    """Remove the background of a picture.

    Every option of a cut is a form field, too: `subject`, `select`, `background`, `output`, `crop`, ….
    """
    begun, data = time.monotonic(), await read_upload(image)
    result = await state.engine.cut(caller.name, data, image.content_type, **with_defaults(options, smoothing))
    elapsed_ms = (time.monotonic() - begun) * 1000
    if return_base64:
        return JSONResponse(removed_form(result, smoothing, elapsed_ms))
    return picture_answer(result, image.filename, elapsed_ms)


def media_type(result: CutResult) -> str:
    form = result.cutouts[0].format
    return "application/zip" if form == "zip" else f"image/{form}"


def picture_answer(result: CutResult, filename: str | None, elapsed_ms: float) -> Response:
    """The first cut-out's file. Several people apart come by the batch or the people's paths."""
    cutout, report = result.cutouts[0], result.report
    headers = {
        "Content-Disposition": f'attachment; filename="{download_name(filename, cutout.extension)}"',
        "X-Processing-Time-Ms": f"{elapsed_ms:.1f}",
        "X-Original-Size": f"{report.width_px}x{report.height_px}",
        "X-Model-Version": model_version(result),
        "X-Subject": report.subject,
        "X-People": str(len(report.people)),
        "X-Warnings": ",".join(notice.code for notice in result.warnings),
    }
    return Response(cutout.image, media_type=media_type(result), headers=headers)


def model_version(result: CutResult) -> str:
    """The profile and the matting network's version: "nano-3"."""
    matte = result.report.models.get("matte")
    version = matte.get("version") if isinstance(matte, dict) else None
    return f"{result.report.profile}-{version or 'unknown'}"


def removed_form(result: CutResult, smoothing: bool, elapsed_ms: float) -> dict[str, Any]:
    """The fields of `Removed`."""
    uri = data_uri(result.cutouts[0].image, media_type(result))
    return {"success": True, "processed_image": uri, "processing_info": processing_info(result, smoothing, elapsed_ms)}


def processing_info(result: CutResult, smoothing: bool, elapsed_ms: float) -> dict[str, Any]:
    report, frame = result.report, result.cutouts[0].frame
    width, height = report.cutouts[0].size or (frame[2] - frame[0], frame[3] - frame[1])
    return ProcessingInfo(
        original_size=f"{report.width_px}x{report.height_px}",
        output_size=f"{width}x{height}",
        background_removed=True,
        edge_smoothing_applied=smoothing,
        processing_time_ms=round(elapsed_ms, 1),
        model_version=model_version(result),
        tensorrt_enabled=report.tensorrt,
        device=report.device,
        subject=report.subject,
        people=len(report.people),
        warnings=[notice.code for notice in result.warnings],
    ).model_dump()


_LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "A line of JSON per picture, as they are done.", "content": {"application/x-ndjson": {}}}
}


@router.post("/remove-batch", responses=_LINES | FAILURES, response_class=Response, response_model=None)
async def remove_batch(
    state: ServiceState,
    caller: Admitted,
    images: Annotated[list[UploadFile], File(description="the pictures")],
    options: Options,
    smoothing: Smoothing = True,
) -> Response:
    """Remove the background of several pictures, side by side.

    Each line is `{index, filename, success, processed_image, processing_info}`, or `{index, filename, success: false,
    error}`; lines come as pictures are done, and one failure leaves the others.
    """
    pictures = [(each.filename, await _read(each), each.content_type) for each in _counted(state, images)]
    if len(pictures) > 1:
        await state.limiter.admit(caller, cost=len(pictures) - 1)
    given, slots = with_defaults(options, smoothing), asyncio.Semaphore(CUT_MANY_JOBS)

    async def one(index: int, name: str | None, data: bytes | CutawayError, declared: str | None) -> dict[str, Any]:
        entry = {"index": index, "filename": name}
        try:
            if isinstance(data, CutawayError):
                raise data
            async with slots:
                begun = time.monotonic()
                result = await state.engine.cut(caller.name, data, declared, **given)
        except CutawayError as error:
            return entry | {"success": False, "error": detail_form(error)}
        return entry | removed_form(result, smoothing, (time.monotonic() - begun) * 1000)

    async def lines() -> AsyncIterator[bytes]:
        running = [asyncio.create_task(one(index, *picture)) for index, picture in enumerate(pictures)]
        try:
            for done in asyncio.as_completed(running):
                yield json.dumps(await done).encode() + b"\n"
        finally:
            for task in running:
                task.cancel()

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _counted(state: State, images: list[UploadFile]) -> list[UploadFile]:
    most = state.settings.batch_max_pictures
    if len(images) > most:
        action = f"Send at most {most} at a time."
        raise ServiceProblem(400, "TOO_MANY_PICTURES", f"{len(images)} pictures are too many.", action)
    return images


async def _read(image: UploadFile) -> bytes | CutawayError:
    try:
        return await read_upload(image)
    except CutawayError as error:
        return error


@router.post("/remove-async", status_code=202, responses=FAILURES)
async def remove_async(
    state: ServiceState,
    caller: Admitted,
    image: Annotated[list[UploadFile], File(description="one picture or several")],
    options: Options,
    smoothing: Smoothing = True,
) -> Submitted:
    """Remove backgrounds in the background; several pictures become one batch of jobs."""
    pictures = [(each.filename, await read_upload(each), each.content_type) for each in _counted(state, image)]
    if len(pictures) > 1:
        await state.limiter.admit(caller, cost=len(pictures) - 1)
    await state.jobs.check_room(len(pictures))  # a batch is begun whole, or not at all
    task_ids = []
    for name, data, declared in pictures:
        upload = await state.storage.put("temporary", data)
        arguments = {"upload": upload, "filename": name, "media_type": declared, "caller": caller.name}
        task_ids.append(secrets.token_urlsafe(16))
        given = {"options": with_defaults(options, smoothing), "smoothing": smoothing, "from": carried()}
        await state.jobs.submit(task_ids[-1], arguments | given)
    task_id, progress = task_ids[0], f"/api/progress/{task_ids[0]}"
    if len(task_ids) > 1:
        task_id = "b" + secrets.token_urlsafe(16)
        await state.jobs.progress(task_id, {"status": "processing", "tasks": task_ids})
        progress = f"/api/progress/batch/{task_id}"
    check = f"/api/background-removal/status/{task_id}"
    return Submitted(task_id=task_id, status="processing", check_url=check, progress_url=progress, task_ids=task_ids)


@router.get("/status/{task_id}", responses=FAILURES)
async def status(state: ServiceState, task_id: str) -> JobStatus:
    """Where a job or a batch is."""
    return JobStatus(**await job_state(state, task_id))


async def job_state(state: State, task_id: str) -> dict[str, Any]:
    """The fields of `JobStatus`; of a batch, with the states of its jobs in `result`."""
    found = await state.jobs.state(task_id)
    if tasks := found.get("tasks"):
        each = [await job_state(state, task) for task in tasks]
        done = sum(job["status"] in FINISHED for job in each)
        found = {
            "status": "completed" if done == len(each) else "processing",
            "stage": "done" if done == len(each) else "processing",
            "percentage": 100 * done // len(each),
            "result": {"done": done, "total": len(each), "tasks": each},
        }
    names = ("status", "stage", "percentage", "result", "error")
    return {"task_id": task_id} | {name: found.get(name) for name in names}


def remove_job(engine: Engine, storage: Storage) -> Work:
    """The work of a job."""

    async def work(arguments: dict[str, Any], stage: Any) -> dict[str, Any]:
        begun, data = time.monotonic(), await storage.get(arguments["upload"])
        result = await engine.cut(arguments["caller"], data, arguments["media_type"], **arguments["options"])
        await stage("storing", 90)
        image_id = await storage.put("cutouts", result.cutouts[0].image)
        info = processing_info(result, arguments["smoothing"], (time.monotonic() - begun) * 1000)
        return {
            "image_id": image_id,
            "image_url": f"/api/images/{image_id}",
            "filename": download_name(arguments["filename"], result.cutouts[0].extension),
            "processing_info": info,
        }

    return work


@router.get("/health", responses={503: {"description": "Nothing can be cut out.", "content": {"application/json": {}}}})
async def health(state: ServiceState) -> Health:
    """Whether pictures can be cut out: a small one is, on the way."""
    return await read_health(state.engine)


async def read_health(engine: Engine) -> Health:
    """Raises:
    ServiceProblem: 503; nothing can be cut out.
    """
    try:
        found = await engine.client.health(timeout_s=5.0)
        message = "" if found.ok else found.error.message if found.error else "The models are not loaded."
    except CutawayError as error:
        message = error.message
    if message:
        problem = ServiceProblem(503, "UNAVAILABLE", message, "Try again in a moment.")
        problem.details = {"status": "unhealthy", "error": problem.code}
        raise problem
    figures = Metrics(**engine.latencies())
    slow = figures.p95_latency_ms is not None and figures.p95_latency_ms > 10_000
    cuda = found.device not in ("", "cpu")
    return Health(
        status="degraded" if slow else "healthy",
        service=SERVICE,
        version=__version__,
        model=f"birefnet ({found.profile})",
        device="cuda" if cuda else "cpu",
        tensorrt_enabled=engine.tensorrt,
        gpu_memory_free_mb=await engine.gpu_free_mb(),
        model_files_status={
            "checkpoint": "loaded",
            "config": "loaded",
            "tensorrt_engine": "loaded" if engine.tensorrt else "not used",
        },
        performance_metrics=figures,
    )
