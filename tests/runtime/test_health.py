"""Health checks: an unhealthy server is told from a busy one, which gets no canary. No Triton here: a manual clock."""

from __future__ import annotations

import io
import json
import time

import pytest
from cutaway.contract.errors import InferenceError, NoPersonDetected, Overloaded
from cutaway.contract.limits import INPUT_LIMITS
from PIL import Image

from runtime.health import Answer, HealthMonitor, HealthStatus, canary_picture, judge

HEALTHY = Answer(HealthStatus.HEALTHY)
OVERLOADED = Answer(HealthStatus.OVERLOADED, "Exceeds maximum queue size")
TIMEOUT = Answer(HealthStatus.TIMEOUT, "no answer")
FAILED = Answer(HealthStatus.FAILED, "the pipeline failed")


class Server:
    """Answers as told, and counts what it was asked."""

    def __init__(self) -> None:
        self.done = 0
        self.answer = HEALTHY
        self.canaries = 0
        self.now = 0.0

    def finished(self) -> int:
        return self.done

    def canary(self, timeout_s: float) -> Answer:
        self.canaries += 1
        if self.answer.status is HealthStatus.TIMEOUT:
            self.now += timeout_s
        if self.answer.status is HealthStatus.HEALTHY:
            self.done += 2
        return self.answer


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def watch(server: Server) -> HealthMonitor:
    return HealthMonitor(server, interval_s=10, stall_timeout_s=60, clock=lambda: server.now)


def look_for(watch: HealthMonitor, server: Server, seconds: float) -> str | None:
    """Let so much time pass, looking once a second."""
    end = server.now + seconds
    while server.now < end:
        server.now += 1
        for _ in range(200):
            failure = watch.check()
            if failure is not None:
                return failure
            if watch._pending is None:
                break
            time.sleep(0.0005)
    return None


def test_idle_server_is_asked_every_interval(watch: HealthMonitor, server: Server) -> None:
    assert look_for(watch, server, 100) is None
    assert 7 <= server.canaries <= 10


def test_busy_server_is_not_asked(watch: HealthMonitor, server: Server) -> None:
    for _ in range(100):
        server.done += 1
        assert look_for(watch, server, 1) is None
    assert server.canaries == 0


def test_dead_model_is_noticed_at_the_first_canary(watch: HealthMonitor, server: Server) -> None:
    look_for(watch, server, 25)
    server.answer = Answer(HealthStatus.FAILED, "Stub process 'birefnet_trt_0_0' is not healthy.")
    before = server.canaries
    assert "not healthy" in str(look_for(watch, server, 30))
    assert server.canaries == before + 1


def test_one_failure_is_asked_about_again(watch: HealthMonitor, server: Server) -> None:
    server.answer = FAILED
    assert look_for(watch, server, 11) is None
    server.answer = HEALTHY
    assert look_for(watch, server, 60) is None
    server.answer = FAILED
    assert look_for(watch, server, 30) == "the pipeline failed"


def test_full_queue_is_not_death_while_pictures_get_done(watch: HealthMonitor, server: Server) -> None:
    server.answer = OVERLOADED
    for _ in range(300):
        server.done += 1
        assert look_for(watch, server, 1) is None


def test_full_queue_without_progress_is_death(watch: HealthMonitor, server: Server) -> None:
    look_for(watch, server, 25)
    server.answer = OVERLOADED
    began = server.now
    assert look_for(watch, server, 200) == OVERLOADED.message
    assert 40 <= server.now - began <= 80


def test_silence_is_death_only_without_progress(watch: HealthMonitor, server: Server) -> None:
    look_for(watch, server, 25)
    server.answer = TIMEOUT
    assert look_for(watch, server, 200) == TIMEOUT.message


def answer_body(error: str) -> bytes:
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("status", "body", "health"),
    [
        (200, b"", HealthStatus.HEALTHY),
        (400, answer_body(NoPersonDetected("Nobody.").to_json()), HealthStatus.HEALTHY),
        (503, answer_body("[request id: canary] Exceeds maximum queue size"), HealthStatus.OVERLOADED),
        (503, answer_body("Request timeout expired"), HealthStatus.OVERLOADED),
        (503, answer_body(Overloaded("Too much.").to_json()), HealthStatus.OVERLOADED),
        (500, answer_body("Stub process 'x' is not healthy."), HealthStatus.FAILED),
        (500, answer_body(InferenceError("It broke.").to_json()), HealthStatus.FAILED),
        (502, b"<html>", HealthStatus.FAILED),
        (400, b'"text"', HealthStatus.FAILED),
    ],
)
def test_answers(status: int, body: bytes, health: HealthStatus) -> None:
    assert judge(status, body).status is health


def test_canary_is_a_picture_within_the_limits() -> None:
    data = canary_picture()
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert min(picture.size) == INPUT_LIMITS.min_side_px
    assert picture.width * picture.height * 4 / len(data) < 10
