"""``/api/video/generate-from-persons``: chosen people as portraits for D-ID, whose API makes them speak."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Annotated, Any

import httpx
from cutaway import CutResult
from fastapi import APIRouter, Header
from PIL import Image, ImageOps
from pydantic import BaseModel, Field

from gateway.service.errors import ServiceProblem
from gateway.service.people import FAILURES, MAX_PERSONS, Person, read_picture
from gateway.service.state import ADMITTED, Admitted, ServiceState

PORTRAIT_SIDE_PX = 1024
"""A square portrait in JPEG, far below the 10 MB that D-ID takes."""
ESTIMATE_S = 60
"""What a short clip takes, as D-ID's own examples show."""
STATES = {"created": "queued", "started": "processing", "done": "completed", "error": "failed", "rejected": "failed"}

router = APIRouter(prefix="/api/video", tags=["video"])


class VideoRequest(BaseModel):
    """Which people of which picture, and what they say."""

    image_id: str | None = None
    image_url: str | None = None
    selected_person_ids: list[int | str] = Field(min_length=1, max_length=MAX_PERSONS)
    persons: list[Person] = Field(min_length=1, max_length=100)
    text: str = Field(min_length=1, max_length=2000)
    voice_id: str = "en-US-JennyNeural"


class VideoTask(BaseModel):
    person_id: int | str
    task_id: str | None = None
    status: str
    estimated_completion_seconds: int | None = None
    error: str | None = None


class VideoTasks(BaseModel):
    task_ids: list[VideoTask]
    progress_url: str


class VideoAnswer(BaseModel):
    success: bool
    data: VideoTasks


class VideoState(BaseModel):
    task_id: str
    status: str
    video_url: str | None = None


DidKey = Annotated[str | None, Header(alias="X-DID-Key", description="the caller's own D-ID key")]


@router.post("/generate-from-persons", responses=FAILURES)
async def generate(state: ServiceState, caller: Admitted, given: VideoRequest, did_key: DidKey = None) -> VideoAnswer:
    """Begin a talking video for each chosen person; one person's failure leaves the others."""
    client = _client(state, did_key)
    data, _ = await read_picture(state, given.image_id, given.image_url)
    by_id = {str(person.person_id): person for person in given.persons}
    chosen = [by_id[str(each)] for each in given.selected_person_ids if str(each) in by_id]
    if len(chosen) != len(given.selected_person_ids):
        raise ServiceProblem(400, "INVALID_OPTION", "A selected person is not among `persons`.", "Give their boxes.")

    async def one(person: Person) -> VideoTask:
        options: Any = {"subject": "each", "boxes": [person.bbox.corners], "padding_px": 40, "background": "#FFFFFF"}
        result = await state.engine.cut(caller.name, data, **options)
        portrait = await asyncio.to_thread(_portrait, result)
        uploaded = await _asked(client, "/images", files={"image": ("portrait.jpg", portrait, "image/jpeg")})
        script = {"type": "text", "input": given.text, "provider": {"type": "microsoft", "voice_id": given.voice_id}}
        talk = await _asked(client, "/talks", json={"source_url": uploaded["url"], "script": script})
        status = STATES.get(str(talk.get("status")), "processing")
        return VideoTask(
            person_id=person.person_id, task_id=talk["id"], status=status, estimated_completion_seconds=ESTIMATE_S
        )

    async with client:
        done = await asyncio.gather(*map(one, chosen), return_exceptions=True)
    tasks = []
    for person, result in zip(chosen, done, strict=True):
        if isinstance(result, BaseException):
            if len(chosen) == 1 or not isinstance(result, Exception):
                raise result
            result = VideoTask(person_id=person.person_id, status="failed", error=str(result))
        tasks.append(result)
    return VideoAnswer(success=True, data=VideoTasks(task_ids=tasks, progress_url="/api/video/status/{task_id}"))


@router.get("/status/{task_id}", responses=FAILURES, dependencies=[ADMITTED])
async def status(state: ServiceState, task_id: str, did_key: DidKey = None) -> VideoState:
    """Where a video is."""
    if not task_id.replace("_", "").replace("-", "").isalnum():
        raise ServiceProblem(404, "NOT_FOUND", "There is no such video.", "Send the id that was given.")
    async with _client(state, did_key) as client:
        talk = await _asked(client, f"/talks/{task_id}")
    found = STATES.get(str(talk.get("status")), "processing")
    return VideoState(task_id=task_id, status=found, video_url=talk.get("result_url"))


def _client(state: Any, key: str | None) -> httpx.AsyncClient:
    key = key or state.settings.did_key
    if not key:
        action = "Send your key in X-DID-Key, or start the service with CUTAWAY_DID_KEY."
        raise ServiceProblem(404, "NOT_CONFIGURED", "Videos need a D-ID key, and none is configured.", action)
    encoded = base64.b64encode(key.encode()).decode() if ":" in key else key
    return httpx.AsyncClient(
        base_url=state.settings.did_url, headers={"Authorization": f"Basic {encoded}"}, timeout=30.0, trust_env=True
    )


async def _asked(client: httpx.AsyncClient, path: str, **given: Any) -> dict[str, Any]:
    """D-ID's answer.

    Raises:
        ServiceProblem: 502, with D-ID's own words; 401 where it refuses the key.
    """
    try:
        response = await client.request("POST" if given else "GET", path, **given)
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        message = f"D-ID does not answer: {type(error).__name__}."
        raise ServiceProblem(502, "PROVIDER_FAILED", message, "Try again later.") from None
    if response.is_error or not isinstance(answer, dict):
        status = response.status_code if response.status_code in (401, 402, 404, 429) else 502
        words = str(answer.get("description") or answer.get("kind") or "") if isinstance(answer, dict) else ""
        message = f"D-ID answers {response.status_code}: {words[:200]}"
        raise ServiceProblem(status if status != 402 else 502, "PROVIDER_FAILED", message, "Check the D-ID account.")
    return answer


def _portrait(result: CutResult) -> bytes:
    """The upper part of a person on white, square: what D-ID animates."""
    image = result.cutouts[0].pil().convert("RGB")
    side = min(image.width, image.height)
    image = image.crop(((image.width - side) // 2, 0, (image.width - side) // 2 + side, side))
    image = ImageOps.fit(image, (PORTRAIT_SIDE_PX, PORTRAIT_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
