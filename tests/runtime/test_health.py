"""Health checks on a schedule: their own outcomes decide, whatever others send. No Triton here: a manual clock."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping

import pytest
from cutaway.contract.errors import InferenceError, NoPersonDetected, Overloaded
from cutaway.contract.limits import INPUT_LIMITS
from PIL import Image

from runtime.health import (
    DETECTION,
    MATTING,
    STREAMS,
    Answer,
    Failure,
    HealthMonitor,
    HealthStatus,
    canary_picture,
    judge,
    judge_frame,
)

HEALTHY = Answer(HealthStatus.HEALTHY)
OVERLOADED = Answer(HealthStatus.OVERLOADED, "Exceeds maximum queue size")
TIMEOUT = Answer(HealthStatus.TIMEOUT, "no answer")
FAILED = Answer(HealthStatus.FAILED, "it failed")


class Server:
    """Answers as told, and counts how often it was asked."""

    def __init__(self) -> None:
        self.answers = {DETECTION: HEALTHY, MATTING: HEALTHY, STREAMS: HEALTHY}
        self.rounds = 0
        self.now = 0.0

    def round(self, timeout_s: float) -> Mapping[str, Answer]:
        self.rounds += 1
        if TIMEOUT in self.answers.values():
            self.now += timeout_s
        return dict(self.answers)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def monitor(server: Server) -> HealthMonitor:
    return HealthMonitor(server, interval_s=10, timeout_s=35, overload_timeout_s=60, clock=lambda: server.now)


def look_for(monitor: HealthMonitor, server: Server, seconds: float) -> Failure | None:
    """Let so much time pass, looking once a second."""
    end = server.now + seconds
    while server.now < end:
        server.now += 1
        for _ in range(200):
            failure = monitor.check()
            if failure is not None:
                return failure
            if monitor._pending is None:
                break
            time.sleep(0.0005)
    return None


def test_it_is_asked_every_interval(monitor: HealthMonitor, server: Server) -> None:
    assert look_for(monitor, server, 100) is None
    assert 9 <= server.rounds <= 10


@pytest.mark.parametrize("part", [DETECTION, MATTING, STREAMS])
def test_a_part_that_fails_is_noticed_within_two_intervals(monitor: HealthMonitor, server: Server, part: str) -> None:
    look_for(monitor, server, 25)
    server.answers[part] = FAILED
    assert look_for(monitor, server, 20) == Failure(part, "it failed")


def test_a_dead_model_is_noticed_at_the_first_canary(monitor: HealthMonitor, server: Server) -> None:
    look_for(monitor, server, 25)
    server.answers[MATTING] = Answer(HealthStatus.FAILED, "Stub process 'birefnet_trt_0_0' is not healthy.")
    before = server.rounds
    assert look_for(monitor, server, 30) is not None
    assert server.rounds == before + 1


def test_one_failure_is_asked_about_again_at_once(monitor: HealthMonitor, server: Server) -> None:
    server.answers[STREAMS] = FAILED
    assert look_for(monitor, server, 10) is None
    server.answers[STREAMS] = HEALTHY
    assert look_for(monitor, server, 1) is None
    assert server.rounds == 2
    assert look_for(monitor, server, 60) is None


def test_silence_is_a_failure(monitor: HealthMonitor, server: Server) -> None:
    server.answers[DETECTION] = TIMEOUT
    assert look_for(monitor, server, 100) == Failure(DETECTION, "no answer")


def test_shedding_is_no_failure_while_some_are_served(monitor: HealthMonitor, server: Server) -> None:
    for number in range(30):
        server.answers[MATTING] = HEALTHY if number % 5 == 0 else OVERLOADED
        assert look_for(monitor, server, 10) is None


def test_shedding_everything_is_a_failure(monitor: HealthMonitor, server: Server) -> None:
    look_for(monitor, server, 25)
    server.answers[MATTING] = OVERLOADED
    began = server.now
    assert look_for(monitor, server, 200) == Failure(MATTING, OVERLOADED.message)
    assert 40 <= server.now - began <= 80


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


def frame_body(**report: object) -> bytes:
    return json.dumps({"outputs": [{"name": "report", "data": [json.dumps(report)]}]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "health"),
    [
        (200, frame_body(untouched=False), HealthStatus.HEALTHY),
        (200, frame_body(untouched=True, warnings=[{"details": {"code": "OVERLOADED"}}]), HealthStatus.OVERLOADED),
        (200, frame_body(untouched=True, warnings=[{"details": {"code": "INFERENCE_ERROR"}}]), HealthStatus.FAILED),
        (200, b"{}", HealthStatus.FAILED),
        (503, answer_body(Overloaded("Too many streams.").to_json()), HealthStatus.OVERLOADED),
        (500, answer_body("Stub process 'x' is not healthy."), HealthStatus.FAILED),
    ],
)
def test_a_frame_that_comes_back_untouched_is_a_failure(status: int, body: bytes, health: HealthStatus) -> None:
    assert judge_frame(status, body).status is health
