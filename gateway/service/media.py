"""``/api/images``: stored pictures by id; ``/api/progress``: jobs as they go; ``/api/ai/hd-image``: enlarging."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from cutaway.contract.errors import CutawayError
from cutaway.contract.headers import picture_format
from fastapi import APIRouter, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field

from gateway.access import current
from gateway.service.background_removal import PICTURE, job_state
from gateway.service.errors import ServiceProblem
from gateway.service.jobs import FINISHED
from gateway.service.live import same_origin
from gateway.service.people import FAILURES
from gateway.service.state import ADMITTED, KNOWN, ServiceState, State
from gateway.service.uploads import data_uri, read_base64

POLL_S = 0.2
MAX_WATCH_S = 600.0

router = APIRouter(tags=["pictures and jobs"])

_FOUND: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"image/png": PICTURE, "image/webp": PICTURE, "image/jpeg": PICTURE}}
}


@router.get("/api/images/{image_id}", responses=_FOUND | FAILURES, dependencies=[KNOWN], response_class=Response)
async def image(state: ServiceState, image_id: str) -> Response:
    """A stored picture or cut-out; whoever knows its id may read it."""
    data = await state.storage.get(image_id)
    form = "zip" if data.startswith(b"PK") else picture_format(data)
    kind = "application/zip" if form == "zip" else f"image/{form}"
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type=kind, headers=headers)


@router.delete("/api/images/{image_id}", status_code=204, responses=FAILURES, dependencies=[KNOWN])
async def delete(state: ServiceState, image_id: str) -> Response:
    """Delete a stored picture before its time."""
    await state.storage.delete(image_id)
    return Response(status_code=204)


@router.websocket("/api/progress/{task_id}")
async def progress(socket: WebSocket, task_id: str) -> None:
    """A job's state as JSON whenever it changes, until it has finished."""
    await _watch(socket, task_id)


@router.websocket("/api/progress/batch/{task_id}")
async def batch_progress(socket: WebSocket, task_id: str) -> None:
    """The same for a batch: done of total."""
    await _watch(socket, task_id)


async def _watch(socket: WebSocket, task_id: str) -> None:
    state: State = socket.app.state.service
    if not same_origin(socket):
        await socket.close(code=1008)
        return
    await socket.accept()
    last: dict[str, Any] = {}
    try:
        async with asyncio.timeout(MAX_WATCH_S):
            while last.get("status") not in FINISHED:
                try:
                    found = await job_state(state, task_id)
                except ServiceProblem as error:
                    await socket.send_json({"task_id": task_id, "status": "unknown", "detail": error.message})
                    break
                if found != last:
                    last = found
                    await socket.send_json(found)
                await asyncio.sleep(POLL_S)
    except (WebSocketDisconnect, TimeoutError):
        pass
    else:
        await socket.close()


class HdRequest(BaseModel):
    """A picture as a data URI, and how many times larger it is wanted."""

    image: str = Field(examples=["data:image/jpeg;base64,/9j/4AAQ…"])
    scale: Literal[2, 4] = 4


class HdImage(BaseModel):
    """The enlarged picture as a data URI, who made it and what it costs."""

    success: bool
    image: str
    width: int
    height: int
    provider: str
    model: str
    tier: int
    tried: list[str]
    cost: str
    licence: str


@router.post("/api/ai/hd-image", responses=FAILURES, dependencies=[ADMITTED])
async def hd_image(state: ServiceState, given: HdRequest) -> HdImage:
    """Enlarge a picture with a hosted model."""
    if state.enlarger is None:
        action = "Start the service with --hosted, for example --hosted replicate, and the provider's token."
        raise ServiceProblem(404, "NOT_CONFIGURED", "Enlarging needs a hosted model, and none is configured.", action)
    data, media_type = read_base64(given.image)
    try:
        request_id = current().request_id
        result = await state.enlarger.upscale(data, given.scale, media_type=media_type, request_id=request_id)
    except ValueError as error:
        if isinstance(error, CutawayError):
            raise
        raise ServiceProblem(404, "NOT_CONFIGURED", str(error), "Configure a provider that enlarges.") from None
    return HdImage(
        success=True,
        image=data_uri(result.data, result.media_type),
        width=result.width_px,
        height=result.height_px,
        provider=result.provider,
        model=result.model,
        tier=result.tier,
        tried=[f"{each.provider}: {each.code}" for each in result.tried],
        cost=result.cost,
        licence=result.licence,
    )
