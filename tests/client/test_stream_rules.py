"""A stream's rules, without a server, over both streams: starting anew, back-off, malformed answers, counts.

Whole streams run against a real server in `tests/integration/test_stream.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
import pytest
from cutaway import AsyncStream, Stream, StreamFrame
from cutaway import stream as stream_module
from cutaway.contract.errors import (
    CorruptImage,
    CutawayError,
    InferenceError,
    InvalidOption,
    Overloaded,
    ProcessingTimeout,
    ServerUnavailable,
)
from cutaway.contract.limits import STREAM_BACK_OFF_FIRST_S, STREAM_BACK_OFF_MAX_S
from cutaway.transports.base import InferRequest, tensor

from tests.integration import picture_files as make

WAIT_S = 20.0
Opened: TypeAlias = Callable[..., Any]
FRAME = np.full((64, 80, 3), 7, np.uint8)
REPORT = {"picture": {"width_px": 80, "height_px": 64}, "people": [], "cutouts": [], "milliseconds": {"total": 3.0}}


class Script:
    """A transport that answers each request with the next of these: outputs, or an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[InferRequest] = []
        self.held = False

    async def infer(self, request: InferRequest) -> Any:
        self.asked.append(request)
        while self.held and request.inputs:
            await asyncio.sleep(0.001)
        answer = self.answers.pop(0) if request.inputs else {}
        if isinstance(answer, CutawayError):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Nothing is open."""


def good(**changed: Any) -> dict[str, Any]:
    return {"frame": FRAME + 1, "report": [json.dumps(REPORT | changed).encode()]}


@pytest.fixture(params=["threads", "asyncio"])
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Opens a `Stream`, or an `AsyncStream` behind the same methods."""
    with ExitStack() as stack:

        def open_one(script: Script, background: Any = "#00FF00", **options: Any) -> Any:
            arguments = {"background": background, "transport": script, "timeout_s": 2.0, **options}
            if request.param == "threads":
                return stack.enter_context(Stream(**arguments))
            return stack.enter_context(driven(arguments))

        yield open_one


@contextmanager
def driven(arguments: Any) -> Iterator[Any]:
    with asyncio.Runner() as runner:

        class Driven:
            def __init__(self) -> None:
                self._stream = runner.run(entered())

            def latest(self, timeout_s: float) -> Any:
                return runner.run(self._stream.latest(timeout_s))

            def __iter__(self) -> Iterator[Any]:
                async def all_of_them() -> list[Any]:
                    return [frame async for frame in self._stream]

                return iter(runner.run(all_of_them()))

            def close(self) -> None:
                runner.run(self._stream.aclose())

            def __getattr__(self, name: str) -> Any:
                return getattr(self._stream, name)

        async def entered() -> Any:
            return await AsyncStream(**arguments).__aenter__()

        stream = Driven()
        yield stream
        stream.close()


def one(stream: Any, image: Any = FRAME) -> StreamFrame:
    number = stream.submit(image)
    frame: StreamFrame = stream.latest(WAIT_S)
    assert frame.id == number
    return frame


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set."""
    now = [100.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])
        perf_counter = staticmethod(lambda: now[0])

    monkeypatch.setattr(stream_module, "time", Time)
    return now


def test_options_and_the_background_go_with_the_first_frame_only(opened: Opened) -> None:
    script = Script(good(), good())
    stream = opened(script, make.jpeg(), smoothing=0.5, channels="bgr")
    assert not one(stream).untouched
    one(stream)
    first, second = script.asked
    assert first.parameters == {"background": "picture", "smoothing": "0.5", "channels": "bgr"}
    assert first.inputs is not None
    assert second.inputs is not None
    assert list(first.inputs) == ["frame", "background"]
    assert list(second.inputs) == ["frame"]
    assert second.parameters == {}
    assert first.sequence is not None
    assert second.sequence is not None
    assert (first.sequence.begins, second.sequence.begins) == (True, False)
    assert first.sequence.id == second.sequence.id > 0
    stream.close()
    stream.close()
    (ending,) = script.asked[2:]
    assert ending.sequence is not None
    assert (ending.sequence.id, ending.sequence.ends) == (first.sequence.id, True)


def test_a_forgotten_stream_begins_anew_with_the_same_frame(opened: Opened) -> None:
    script = Script(good(), ServerUnavailable("The stream is not known here."), good())
    stream = opened(script, make.jpeg())
    one(stream)
    again = one(stream)
    assert not again.untouched
    begun = script.asked[2]
    assert begun.sequence is not None
    assert begun.sequence.begins
    assert begun.inputs is not None
    assert list(begun.inputs) == ["frame", "background"]


def test_a_server_that_fails_is_left_alone_for_longer_and_longer(opened: Opened, clock: list[float]) -> None:
    down = ServerUnavailable("down")
    script = Script(*[down] * 20)
    stream = opened(script)
    rests = []
    for _ in range(7):
        assert one(stream).error is down
        asked, since = len(script.asked), clock[0]
        while len(script.asked) == asked:
            clock[0] += 0.01
            frame = one(stream)
            assert frame.untouched
            assert np.array_equal(frame.image, FRAME)
            assert frame.error is down
        rests.append(round(clock[0] - since, 1))
        clock[0] += 100
    assert rests[0] == pytest.approx(STREAM_BACK_OFF_FIRST_S, abs=0.1)
    assert rests == sorted(rests)
    assert rests[-1] == pytest.approx(STREAM_BACK_OFF_MAX_S, abs=0.1)
    script.answers = [good()]
    assert not one(stream).untouched


def test_a_frame_that_is_too_late_is_not_sent_twice(opened: Opened) -> None:
    script = Script(good(), ProcessingTimeout("late"))
    stream = opened(script)
    one(stream)
    assert isinstance(one(stream).error, ProcessingTimeout)
    assert len(script.asked) == 2


def test_a_damaged_frame_is_no_failure_of_the_server(opened: Opened) -> None:
    script = Script(good(), CorruptImage("damaged"), good())
    stream = opened(script)
    one(stream)
    assert isinstance(one(stream).error, CorruptImage)
    assert not one(stream).untouched
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
def test_answers_that_make_no_sense(opened: Opened, answer: Mapping[str, Any]) -> None:
    frame = one(opened(Script(answer)))
    assert frame.untouched
    assert isinstance(frame.error, InferenceError)
    assert np.array_equal(frame.image, FRAME)


def test_frames_that_the_server_could_not_work_on(opened: Opened) -> None:
    frame = one(opened(Script(good(untouched=True, warnings=[{"code": "UNTOUCHED", "message": "…", "tier": 3}]))))
    assert (frame.untouched, frame.error) == (True, None)
    assert frame.report is not None
    assert [warning.code for warning in frame.report.warnings] == ["UNTOUCHED"]


def test_a_server_without_a_place_is_told_as_such(opened: Opened, clock: list[float]) -> None:
    full = Overloaded("Too many streams are open.", details={"max_streams": 16}, user_action="End some.")
    script = Script(full, full, good())
    stream = opened(script)
    refused, resting = one(stream), one(stream)
    assert len(script.asked) == 1
    for frame in (refused, resting):
        assert (frame.untouched, frame.overloaded, frame.error) == (True, True, full)
        (warning,) = frame.warnings
        assert (warning.code, warning.details) == ("UNTOUCHED", {"code": "OVERLOADED", "max_streams": 16})
        assert "OVERLOADED: Too many streams are open. End some." in warning.message
    clock[0] += 1
    one(stream)
    clock[0] += 1
    served = one(stream)
    assert (served.untouched, served.overloaded, served.warnings) == (False, False, ())
    told = stream.statistics
    assert (told.done, told.untouched, told.overloaded) == (4, 3, 3)


def test_a_detector_without_room_counts_as_well(opened: Opened) -> None:
    said = {"code": "UNTOUCHED", "message": "…", "tier": 3, "details": {"code": "OVERLOADED"}}
    frame = one(opened(Script(good(untouched=True, warnings=[said]))))
    assert (frame.untouched, frame.overloaded) == (True, True)
    assert not one(opened(Script(ServerUnavailable("down")))).overloaded


def test_counts(opened: Opened) -> None:
    script = Script(good(), good(), ServerUnavailable("down"), ServerUnavailable("down"))
    stream = opened(script)
    one(stream)
    script.held = True
    stream.submit(FRAME)
    while len(script.asked) < 2:
        assert stream.latest(0.01) is None
    for _ in range(3):
        stream.submit(FRAME)
    script.held = False
    stream.finish()
    assert [frame.id for frame in stream] == [2, 5]
    told = stream.statistics
    assert (told.submitted, told.done, told.dropped, told.untouched, told.skipped) == (5, 3, 2, 1, 0)
    with pytest.raises(RuntimeError, match="finished"):
        stream.submit(FRAME)


def test_closing_cancels_the_request_in_flight(opened: Opened) -> None:
    script = Script(good())
    stream = opened(script)
    script.held = True
    stream.submit(FRAME)
    while not script.asked:
        assert stream.latest(0.01) is None
    stream.close()
    assert [bool(asked.sequence and asked.sequence.ends) for asked in script.asked] == [False, True]
    assert stream.statistics.done == 0
    assert list(stream) == []


def test_a_stream_needs_to_be_entered_and_its_options_right() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="not entered"):
            await AsyncStream(transport=Script()).latest(1)

    asyncio.run(main())
    with pytest.raises(TypeError, match="colour"):
        Stream(transport=Script(), colour="red")  # type: ignore[call-arg]
    with pytest.raises(InvalidOption):
        Stream(transport=Script(), smoothing=2)


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
