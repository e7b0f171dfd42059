"""What a stream decides, without a server: when it begins anew, when it rests, and what it makes of odd answers.

Whole streams run against a real server in `tests/integration/test_stream.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import (
    CorruptImage,
    CutawayError,
    InferenceError,
    Overloaded,
    ProcessingTimeout,
    ServerUnavailable,
)
from cutaway.contract.limits import STREAM_REST_FIRST_S, STREAM_REST_MAX_S
from cutaway.resilience import drive
from cutaway.streaming import course as course_module
from cutaway.streaming.course import Course, course_of
from cutaway.streaming.frames import StreamFrame
from cutaway.transports.base import InferRequest
from cutaway.wire import tensor

from tests.integration import picture_files as make

FRAME = np.full((64, 80, 3), 7, np.uint8)
REPORT = {"picture": {"width_px": 80, "height_px": 64}, "people": [], "cutouts": [], "milliseconds": {"total": 3.0}}


class Script:
    """Answers each request with the next of these: outputs, or an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[InferRequest] = []

    def __call__(self, request: InferRequest) -> Any:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, CutawayError):
            raise answer
        return answer


def good(**changed: Any) -> dict[str, Any]:
    return {"frame": FRAME + 1, "report": [json.dumps(REPORT | changed).encode()]}


def opened(background: Any = "#00FF00", **options: Any) -> Course:
    given: dict[str, Any] = dict.fromkeys(("min_confidence", "smoothing", "channels", "quality", "token", "api_key"))
    given |= {"timeout_s": 2.0, "headers": None, "tls": None, **options}
    return course_of("grpc://localhost:8001", background=background, **given)


def one(course: Course, script: Script, image: Any = FRAME) -> StreamFrame:
    course.submit(image)
    waiting = course.next()
    assert waiting is not None
    frame = drive(course.serve(waiting), script)
    course.keep(frame)
    taken = course.take_latest()
    assert taken is frame
    return frame


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set."""
    now = [100.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])
        perf_counter = staticmethod(lambda: now[0])

    monkeypatch.setattr(course_module, "time", Time)
    return now


def test_options_and_the_background_go_with_the_first_frame_only() -> None:
    script = Script(good(), good())
    course = opened(make.jpeg(), smoothing=0.5, channels="bgr")
    assert not one(course, script).untouched
    one(course, script)
    first, second = script.asked
    assert first.parameters == {"background": "picture", "smoothing": "0.5", "channels": "bgr"}
    assert first.inputs is not None
    assert second.inputs is not None
    assert [each.name for each in first.inputs] == ["frame", "background"]
    assert [each.name for each in second.inputs] == ["frame"]
    assert second.parameters == {}
    assert first.sequence is not None
    assert second.sequence is not None
    assert (first.sequence.begins, second.sequence.begins) == (True, False)
    assert first.sequence.id == second.sequence.id > 0
    ending = course.end()
    assert ending is not None
    assert ending.sequence is not None
    assert (ending.sequence.id, ending.sequence.ends) == (first.sequence.id, True)
    assert course.end() is None


def test_a_forgotten_stream_begins_anew_with_the_same_frame() -> None:
    script = Script(good(), ServerUnavailable("The stream is not known here."), good())
    course = opened(make.jpeg())
    one(course, script)
    again = one(course, script)
    assert not again.untouched
    begun = script.asked[2]
    assert begun.sequence is not None
    assert begun.sequence.begins
    assert begun.inputs is not None
    assert [each.name for each in begun.inputs] == ["frame", "background"]


def test_a_server_that_fails_is_left_alone_for_longer_and_longer(clock: list[float]) -> None:
    down = ServerUnavailable("down")
    script = Script(*[down] * 20)
    course = opened()
    rests = []
    for _ in range(7):
        assert one(course, script).error is down
        asked, since = len(script.asked), clock[0]
        while len(script.asked) == asked:
            clock[0] += 0.01
            frame = one(course, script)
            assert frame.untouched
            assert np.array_equal(frame.image, FRAME)
            assert frame.error is down
        rests.append(round(clock[0] - since, 1))
        clock[0] += 100
    assert rests[0] == pytest.approx(STREAM_REST_FIRST_S, abs=0.1)
    assert rests == sorted(rests)
    assert rests[-1] == pytest.approx(STREAM_REST_MAX_S, abs=0.1)
    script.answers = [good()]
    assert not one(course, script).untouched


def test_a_frame_that_is_too_late_is_not_sent_twice() -> None:
    script = Script(good(), ProcessingTimeout("late"))
    course = opened()
    one(course, script)
    assert isinstance(one(course, script).error, ProcessingTimeout)
    assert len(script.asked) == 2


def test_a_damaged_frame_is_no_failure_of_the_server() -> None:
    script = Script(good(), CorruptImage("damaged"), good())
    course = opened()
    one(course, script)
    assert isinstance(one(course, script).error, CorruptImage)
    assert not one(course, script).untouched
    assert [bool(asked.sequence and asked.sequence.begins) for asked in script.asked] == [True, False, False]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"frame": FRAME},
        {"report": [json.dumps(REPORT).encode()]},
        {"frame": FRAME[:-1], "report": [json.dumps(REPORT).encode()]},
        {"frame": FRAME.astype(np.float32), "report": [json.dumps(REPORT).encode()]},
        {"frame": FRAME, "report": [b"{}"]},
        {"frame": FRAME, "report": [b"no JSON"]},
        {"frame": FRAME, "report": []},
    ],
)
def test_answers_that_make_no_sense(answer: Mapping[str, Any]) -> None:
    frame = one(opened(), Script(answer))
    assert frame.untouched
    assert isinstance(frame.error, InferenceError)
    assert np.array_equal(frame.image, FRAME)


def test_frames_that_the_server_could_not_work_on() -> None:
    frame = one(opened(), Script(good(untouched=True, warnings=[{"code": "UNTOUCHED", "message": "…", "tier": 3}])))
    assert (frame.untouched, frame.error) == (True, None)
    assert frame.report is not None
    assert [warning.code for warning in frame.report.warnings] == ["UNTOUCHED"]


def test_a_server_without_a_place_is_told_as_such(clock: list[float]) -> None:
    full = Overloaded("Too many streams are open.", details={"max_streams": 16}, user_action="End some.")
    script = Script(full, full, good())
    course = opened()
    refused, resting = one(course, script), one(course, script)
    assert len(script.asked) == 1
    for frame in (refused, resting):
        assert (frame.untouched, frame.overloaded, frame.error) == (True, True, full)
        (warning,) = frame.warnings
        assert (warning.code, warning.details) == ("UNTOUCHED", {"code": "OVERLOADED", "max_streams": 16})
        assert "OVERLOADED: Too many streams are open. End some." in warning.message
    clock[0] += 1
    one(course, script)
    clock[0] += 1
    served = one(course, script)
    assert (served.untouched, served.overloaded, served.warnings) == (False, False, ())
    told = course.tally.statistics()
    assert (told.done, told.untouched, told.overloaded) == (4, 3, 3)


def test_a_detector_without_room_counts_as_well() -> None:
    said = {"code": "UNTOUCHED", "message": "…", "tier": 3, "details": {"code": "OVERLOADED"}}
    frame = one(opened(), Script(good(untouched=True, warnings=[said])))
    assert (frame.untouched, frame.overloaded) == (True, True)
    assert not one(opened(), Script(ServerUnavailable("down"))).overloaded


def test_counts() -> None:
    course, script = opened(), Script(good(), good(), ServerUnavailable("down"), ServerUnavailable("down"))
    one(course, script)
    for _ in range(3):
        course.submit(FRAME)
    one(course, script)
    one(course, script)
    told = course.tally.statistics()
    assert (told.submitted, told.done, told.dropped, told.untouched, told.skipped) == (6, 3, 3, 1, 0)
    assert told.latency_p50_ms <= told.latency_p95_ms <= told.latency_p99_ms
    assert told.fps > 0


@pytest.mark.parametrize(
    ("datatype", "shape", "raw"), [("UINT8", [2, 3], bytes(5)), ("UINT8", [1] * 70, b"x"), ("INT8", [1], b"x")]
)
def test_tensors_of_frames_are_read_with_suspicion(datatype: str, shape: list[int], raw: bytes) -> None:
    with pytest.raises(InferenceError):
        tensor("frame", datatype, shape, raw)


def test_tensors_of_frames_may_be_written_to() -> None:
    read = tensor("frame", "UINT8", [2, 1, 3], bytes(range(6)))
    assert isinstance(read, np.ndarray)
    read += 1
    assert read.tolist() == [[[1, 2, 3]], [[4, 5, 6]]]
