"""Replicate: create, poll, fetch; bad ends; and cancelling what nobody waits for."""

from __future__ import annotations

import asyncio
import base64
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cutaway.contract.errors import CorruptImage, InferenceError, InvalidOption
from cutaway.providers import InvalidAnswer, Replicate
from cutaway.resilience import Deadline

from tests.client.hosted.asking import QUICK, assert_right
from tests.client.hosted.peers import (
    TOKEN,
    Peer,
    Received,
    ReplicateScript,
    Reply,
    as_json,
    cutout,
    encoded,
    picture,
)

OUTPUTS = {
    "file": "{base}/files/out.png",
    "list": ["{base}/files/out.png"],
    "data URI": "data:image/png;base64," + base64.b64encode(encoded(cutout())).decode(),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_replicate(
    output: str, serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutaway.fallback.replicate.POLL_FIRST_S", 0.02)
    script = ReplicateScript(states=["starting", "processing", "succeeded"], output=OUTPUTS[output])
    peer = serve(script)
    result = matte(Replicate("851-labs/background-remover", base_url=peer.base_url, token=TOKEN))
    assert_right(result)
    assert result.details == {"prediction": "p1"}
    assert script.cancelled == 0
    polls = ["GET /v1/predictions/p1"] * 2
    assert peer.paths == ["POST /v1/predictions", *polls] + (["GET /files/out.png"] if output != "data URI" else [])
    created = peer.received[0]
    assert created.headers["authorization"] == f"Bearer {TOKEN}"
    assert created.headers["cancel-after"] == "10s"
    form = created.json()
    assert form["version"].startswith("851-labs/background-remover:a029dff3")
    assert form["input"]["image"] == "data:image/png;base64," + base64.b64encode(picture()).decode()
    assert form["input"]["background_type"] == "rgba"


@pytest.mark.parametrize(
    ("script", "expected", "words"),
    [
        ({"states": ["failed"], "error": "CUDA error"}, InferenceError, "CUDA error"),
        ({"states": ["failed"], "error": "cannot identify image file"}, CorruptImage, "cannot identify"),
        ({"states": ["canceled"]}, InferenceError, "canceled"),
        ({"states": ["aborted"]}, InferenceError, "aborted"),
        ({"states": ["pondering"]}, InvalidAnswer, "not known"),
        ({"states": ["succeeded"], "output": None}, InvalidAnswer, "without an output"),
        ({"states": ["succeeded"], "output": []}, InvalidAnswer, "without an output"),
        ({"states": ["succeeded"], "output": {"url": 1}}, InvalidAnswer, "without an output"),
        ({"states": ["succeeded"], "file": as_json({"detail": "gone"}, 404)}, Exception, "gone"),
        ({"states": ["succeeded"], "file": as_json({})}, InvalidAnswer, "instead of a picture"),
        (
            {"states": ["succeeded"], "create": as_json({"id": "../../x", "status": "starting"})},
            InvalidAnswer,
            "no pred",
        ),
    ],
)
def test_replicate_ends_badly(
    script: dict[str, Any],
    expected: type[Exception],
    words: str,
    serve: Callable[..., Peer],
    matte: Callable[..., Any],
) -> None:
    running = ReplicateScript(**script)
    peer = serve(running)
    with pytest.raises(expected, match=words):
        matte(Replicate(base_url=peer.base_url, retry=QUICK))
    assert running.cancelled == 0, "what has ended needs no cancelling"


def test_replicate_cancels_when_the_task_is_cancelled(serve: Callable[..., Peer]) -> None:
    script = ReplicateScript(states=["starting"])
    peer = serve(script)

    async def main() -> None:
        task = asyncio.create_task(Replicate(base_url=peer.base_url).matte(picture(), "image/png", Deadline(20)))
        while len(peer.received) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert script.cancelled == 1


def test_replicate_cancels_on_ctrl_c(serve: Callable[..., Peer]) -> None:
    script = ReplicateScript(states=["starting"])

    def interrupting(received: Received) -> Reply:
        if received.method == "GET":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return script(received)

    peer = serve(interrupting)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(Replicate(base_url=peer.base_url).matte(picture(), "image/png", Deadline(20)))
    assert script.cancelled == 1


def test_replicate_refuses_what_names_no_model() -> None:
    with pytest.raises(InvalidOption, match="owner/name:version"):
        Replicate("https://replicate.com/owner/name")
