"""One frame's way with a stand-in for the detector: outputs, failures, and what a stream remembers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import CutawayError, InferenceError, InputError, RequestCancelled
from cutaway.contract.limits import UNTOUCHED
from cutaway.contract.options import parse_stream_options
from cutaway.report import parse_report
from stream.fit import free
from stream.run import Answer, run
from stream.states import State, begin

from tests.pipeline.stand_ins import draw
from tests.stream.stand_ins import detector

SCENE = draw(640, 480, [(250, 240, 90, 180)])


def fit_of(width: int, height: int) -> Any:
    return free(width, height, 512 * 384)


def opened(picture: bytes | None = None, **options: Any) -> State:
    return begin(parse_stream_options(options), picture)


def answer(given: Any, state: State, wanted: tuple[str, ...] = ("frame",), detect: Any = detector) -> Answer:
    return run(given, state, detect, fit_of, wanted)


def test_person_before_a_colour() -> None:
    made = answer(SCENE, opened(background="#0000FF"))
    assert (made.frame[:50, :50] == (0, 0, 255)).all()
    assert np.array_equal(made.frame[200:280, 220:280], SCENE[200:280, 220:280])
    assert made.report["people"] == [{"id": 0, "box": pytest.approx([160, 60, 341, 421], abs=3), "confidence": 0.9}]
    assert (made.report["untouched"], made.report["warnings"]) == (False, [])


def test_the_client_can_read_the_report() -> None:
    import json

    report = parse_report(json.dumps(answer(SCENE, opened()).report).encode())
    assert (report.width_px, report.height_px, len(report.people)) == (640, 480, 1)


def test_jpegs_are_made_only_where_they_are_asked_for() -> None:
    assert answer(SCENE, opened()).jpeg == b""
    fine, coarse = (len(answer(SCENE, opened(quality=quality), ("jpeg",)).jpeg) for quality in (95, 20))
    assert fine > coarse > 0


def failing(error: CutawayError) -> Any:
    def detect(_images: Any) -> Any:
        raise error

    return detect


def test_a_failing_detector_leaves_the_frame_as_it_is() -> None:
    made = answer(SCENE, opened(), ("frame", "jpeg"), failing(InferenceError("out of order")))
    assert np.array_equal(made.frame, SCENE)
    assert (made.alpha == 255).all()
    assert made.report["untouched"]
    (warning,) = made.report["warnings"]
    assert (warning["code"], warning["tier"], warning["details"]) == (UNTOUCHED, 3, {"code": "INFERENCE_ERROR"})
    with pytest.raises(RequestCancelled):
        answer(SCENE, opened(), detect=failing(RequestCancelled("gone")))


def test_an_untouched_file_comes_back_byte_for_byte() -> None:
    file = answer(SCENE, opened(), ("jpeg",)).jpeg
    assert answer(file, opened(), ("jpeg",), failing(InferenceError("out of order"))).jpeg == file


@pytest.mark.parametrize("given", [b"", b"no picture", SCENE[..., :2], SCENE[:20], np.zeros((2200, 4000, 3), np.uint8)])
def test_bad_frames(given: Any) -> None:
    with pytest.raises(InputError):
        answer(given, opened())


def test_a_background_that_is_no_picture() -> None:
    with pytest.raises(InputError):
        opened(b"no picture", background="picture")


def test_a_stream_remembers_who_was_there() -> None:
    """A detector that is less sure for one frame does not make somebody blink; one who comes needs more."""

    def unsure(images: Any) -> Any:
        return detector(images, (0.25, 0.25, 0.25))

    state = opened(smoothing=0.0)
    assert not answer(SCENE, opened(), detect=unsure).alpha.any()
    answer(SCENE, state)
    assert answer(SCENE, state, detect=unsure).alpha.any()
