"""``WS /api/live``: a camera's frames with another background, as the page's live view wants them."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from cutaway import AsyncStream
from cutaway.contract.errors import CutawayError
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from gateway.access import current
from gateway.http import is_known_host
from gateway.service.errors import Problem, ServiceProblem, error_entry
from gateway.service.state import State
from gateway.service.transport import CoreTransport
from gateway.service.transport import caller as asking
from gateway.service.uploads import read_base64

MAX_FRAME_BYTES = 4 * 1024 * 1024
WAIT_S = 1.0
IDLE_S = 30.0
"""A socket on which no frame comes for so long is closed: its place at the server is another's."""

router = APIRouter(tags=["video"])


def same_origin(socket: WebSocket) -> bool:
    """Whether the page that opens the socket is this service's, or one of the settings' origins; programs send none.
    A page whose name turns to this address has the same origin, and a name that is none of the server's."""
    origin, host = socket.headers.get("origin"), socket.headers.get("host", "")
    settings = socket.app.state.service.engine.core.settings
    known = origin is None or origin in settings.origins or urlsplit(origin).netloc == host
    return known and is_known_host(host, settings.hosts)


@router.websocket("/api/live")
async def live(socket: WebSocket) -> None:
    """First JSON, `{background, quality, …}` as for a stream; then JPEG frames. Each answer is JSON
    `{id, untouched, latency_ms, people, dropped}` and then the frame. Late frames are dropped and counted."""
    if not same_origin(socket):
        await socket.close(code=1008)
        return
    await socket.accept()
    state: State = socket.app.state.service
    try:
        address = socket.client.host if socket.client else "unknown"
        sender = state.keys.caller(socket.headers.get("x-api-key"), address)
        await state.limiter.admit(sender)
        asking.set(sender.name.removeprefix("address:"))
        options = _options(await socket.receive_text())
        async with AsyncStream(transport=CoreTransport(state.engine.core), **options) as stream:
            await _run(socket, stream)
    except (CutawayError, ServiceProblem) as error:
        await _refuse(socket, error)
    except (ValueError, KeyError, TypeError):
        problem = ServiceProblem(400, "INVALID_OPTION", "Send the options as JSON, then JPEG frames.", "See /api/docs.")
        await _refuse(socket, problem)
    except (WebSocketDisconnect, TimeoutError):
        pass
    if socket.client_state == WebSocketState.CONNECTED:
        with suppress(RuntimeError):
            await socket.close()


def _options(text: str) -> dict[str, Any]:
    given = json.loads(text)
    options = {name: given[name] for name in ("background", "min_confidence", "smoothing", "quality") if name in given}
    background = str(options.get("background", ""))
    if background.startswith("data:"):
        options["background"] = read_base64(background)[0]
    elif background and not background.startswith(("#", "blur:")):
        raise ValueError("a path is no background")
    return options


async def _run(socket: WebSocket, stream: AsyncStream) -> None:
    """Frames in and out until the page closes."""

    async def receive() -> None:
        while True:
            async with asyncio.timeout(IDLE_S):
                frame = await socket.receive_bytes()
            if len(frame) > MAX_FRAME_BYTES:
                raise ServiceProblem(413, "FILE_TOO_LARGE", "The frame is too large.", "Send smaller frames.")
            stream.submit(frame)

    async def send() -> None:
        while True:
            done = await stream.latest(timeout_s=WAIT_S)
            if done is None:
                continue
            counts = stream.statistics
            facts = {
                "id": done.id,
                "untouched": done.untouched,
                "latency_ms": round(done.latency_ms, 1),
                "people": len(done.report.people) if done.report else 0,
                "dropped": counts.dropped,
            }
            await socket.send_json(facts)
            await socket.send_bytes(bytes(done.image))

    tasks = [asyncio.create_task(receive()), asyncio.create_task(send())]
    try:
        finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _refuse(socket: WebSocket, error: Problem) -> None:
    current().code = error.code
    with suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_json({"error": error_entry(error)})
        await socket.close(code=1011)
