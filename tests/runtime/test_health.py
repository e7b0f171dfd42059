"""A dead server is told from a busy one, and a busy one is left to its work. No Triton here: a clock that is set."""

from __future__ import annotations

import io
import json
import time

import pytest
from cutaway.contract.errors import InferenceError, NoPersonDetected, Overloaded
from cutaway.contract.limits import INPUT_LIMITS
from PIL import Image

from runtime.health import Answer, Verdict, Watch, canary_picture, judge

WELL = Answer(Verdict.WELL)
BUSY = Answer(Verdict.BUSY, "Exceeds maximum queue size")
SILENT = Answer(Verdict.SILENT, "no answer")
BROKEN = Answer(Verdict.BROKEN, "the pipeline failed")


class Server:
    """Answers as told, and counts what it was asked."""

    def __init__(self) -> None:
        self.done = 0
        self.answer = WELL
        self.canaries = 0
        self.now = 0.0

    def finished(self) -> int:
        return self.done

    def canary(self, timeout_s: float) -> Answer:
        self.canaries += 1
        if self.answer.verdict is Verdict.SILENT:
            self.now += timeout_s
        if self.answer.verdict is Verdict.WELL:
            self.done += 2
        return self.answer


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def watch(server: Server) -> Watch:
    return Watch(server, interval_s=10, patience_s=60, clock=lambda: server.now)


def look_for(watch: Watch, server: Server, seconds: float) -> str | None:
    """Let so much time pass, looking once a second."""
    end = server.now + seconds
    while server.now < end:
        server.now += 1
        for _ in range(200):
            complaint = watch.look()
            if complaint is not None:
                return complaint
            if watch._pending is None:
                break
            time.sleep(0.0005)
    return None


def test_idle_server_is_asked_every_interval(watch: Watch, server: Server) -> None:
    assert look_for(watch, server, 100) is None
    assert 7 <= server.canaries <= 10


def test_busy_server_is_not_asked(watch: Watch, server: Server) -> None:
    for _ in range(100):
        server.done += 1
        assert look_for(watch, server, 1) is None
    assert server.canaries == 0


def test_dead_model_is_noticed_at_the_first_canary(watch: Watch, server: Server) -> None:
    look_for(watch, server, 25)
    server.answer = Answer(Verdict.BROKEN, "Stub process 'birefnet_trt_0_0' is not healthy.")
    before = server.canaries
    assert "not healthy" in str(look_for(watch, server, 30))
    assert server.canaries == before + 1


def test_one_failure_is_asked_about_again(watch: Watch, server: Server) -> None:
    server.answer = BROKEN
    assert look_for(watch, server, 11) is None
    server.answer = WELL
    assert look_for(watch, server, 60) is None
    server.answer = BROKEN
    assert look_for(watch, server, 30) == "the pipeline failed"


def test_full_queue_is_not_death_while_pictures_get_done(watch: Watch, server: Server) -> None:
    server.answer = BUSY
    for _ in range(300):
        server.done += 1
        assert look_for(watch, server, 1) is None


def test_full_queue_without_progress_is_death(watch: Watch, server: Server) -> None:
    look_for(watch, server, 25)
    server.answer = BUSY
    began = server.now
    assert look_for(watch, server, 200) == BUSY.message
    assert 40 <= server.now - began <= 80


def test_silence_is_death_only_without_progress(watch: Watch, server: Server) -> None:
    look_for(watch, server, 25)
    server.answer = SILENT
    assert look_for(watch, server, 200) == SILENT.message


def answer_body(error: str) -> bytes:
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b"", Verdict.WELL),
        (400, answer_body(NoPersonDetected("Nobody.").to_json()), Verdict.WELL),
        (503, answer_body("[request id: canary] Exceeds maximum queue size"), Verdict.BUSY),
        (503, answer_body("Request timeout expired"), Verdict.BUSY),
        (503, answer_body(Overloaded("Too much.").to_json()), Verdict.BUSY),
        (500, answer_body("Stub process 'x' is not healthy."), Verdict.BROKEN),
        (500, answer_body(InferenceError("It broke.").to_json()), Verdict.BROKEN),
        (502, b"<html>", Verdict.BROKEN),
        (400, b'"text"', Verdict.BROKEN),
    ],
)
def test_answers(status: int, body: bytes, verdict: Verdict) -> None:
    assert judge(status, body).verdict is verdict


def test_canary_is_a_picture_within_the_limits() -> None:
    data = canary_picture()
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert min(picture.size) == INPUT_LIMITS.min_side_px
    assert picture.width * picture.height * 4 / len(data) < 10
