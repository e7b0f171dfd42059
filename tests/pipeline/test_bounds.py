"""Bounds of a request's answer and time, with stand-ins for the networks: what cannot be is refused before it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import InvalidOption, ProcessingTimeout, RequestCancelled
from cutaway.contract.limits import MODEL_MAX_BATCH
from cutaway.contract.options import parse_options
from numpy.typing import NDArray
from pipeline import answer_size
from pipeline import pace as pace_module
from pipeline.pace import Pace
from pipeline.run import Models, run

from tests.pipeline import stand_ins

WIDTH, HEIGHT = 640, 400
SCENE = stand_ins.picture(WIDTH, HEIGHT, [(150, 200, 60, 150), (450, 240, 50, 110)])
WHOLE = [[0, 0, WIDTH - step, HEIGHT] for step in range(6)]
"""Six different boxes, each nearly the whole picture."""


class Matter:
    """The stand-in network, counting its crops, and taking as long per crop as it is told, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds_per_crop: float) -> None:
        self.seconds_per_crop, self.now, self.calls = seconds_per_crop, 0.0, list[int]()
        monkeypatch.setattr(pace_module.time, "monotonic", lambda: self.now)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.calls.append(len(images))
        self.now += self.seconds_per_crop * len(images)
        return stand_ins.matter(images)


def boxes(count: int) -> str:
    """So many small boxes of different places."""
    return json.dumps([[5 * place, 10, 5 * place + 60, 90] for place in range(count)])


def cut(matter: Matter, pace: Pace, timeout_s: float, **options: Any) -> Any:
    return run(
        SCENE,
        parse_options(options),
        Models(stand_ins.detector, matter, stand_ins.SIDE, pace=pace),
        remaining_s=lambda: timeout_s - matter.now,
    )


# ------------------------------------------------------------------------------------------------------ the answer


def limit(monkeypatch: pytest.MonkeyPatch, max_bytes: int) -> None:
    monkeypatch.setattr(answer_size, "ANSWER_MAX_BYTES", max_bytes)


def unused(_images: Any) -> Any:
    pytest.fail("a crop was matted for an answer that is too large")


def test_cutouts_too_large_together_are_refused_before_anything_is_matted(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 2_000_000)
    options = parse_options({"subject": "each", "background": "blur:8", "boxes": json.dumps(WHOLE)})
    with pytest.raises(InvalidOption) as refused:
        run(SCENE, options, Models(stand_ins.detector, unused, stand_ins.SIDE))
    assert refused.value.details["name"] == "subject"
    assert refused.value.details["answer_bytes"] == pytest.approx(6 * WIDTH * HEIGHT * 2, rel=0.1)
    assert refused.value.details["max_bytes"] == 2_000_000
    for way_out in ("fewer boxes", "crop", "max_side_px", "layers", "jpeg"):
        assert way_out in refused.value.user_action


@pytest.mark.parametrize(
    "way_out",
    [
        {"boxes": json.dumps(WHOLE[:3])},
        {"max_side_px": 300},
        {"output": "layers"},
        {"output": "webp"},
        {"output": "jpeg", "background": "#102030"},
        {"output": "mask"},
        {"crop": True},
    ],
)
def test_what_the_error_advises_works(monkeypatch: pytest.MonkeyPatch, way_out: dict[str, Any]) -> None:
    limit(monkeypatch, 2_000_000)
    answer = run(SCENE, parse_options({"subject": "each", "boxes": json.dumps(WHOLE)} | way_out), stand_ins.models())
    assert len(answer.images) >= 3


def test_files_that_grew_beyond_the_estimate_end_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise has more bytes than any estimate: what has been produced counts, and nothing further is rendered."""
    rendered: list[int] = []
    noise = stand_ins.as_png(np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    original = answer_size.check_produced

    def counted(cutouts: Any, *rest: Any) -> None:
        rendered.append(len(cutouts))
        original(cutouts, *rest)

    monkeypatch.setattr("pipeline.run.check_produced", counted)
    largest = max(map(len, run(noise, parse_options({"boxes": json.dumps(WHOLE)}), stand_ins.models()).images))
    limit(monkeypatch, 3 * largest)
    monkeypatch.setitem(answer_size.BYTES_PER_PIXEL, "png", 0.1 * largest / (WIDTH * HEIGHT))
    options = {"subject": "each", "boxes": json.dumps([*WHOLE, [1, 0, WIDTH, HEIGHT]] * 2)}
    with pytest.raises(InvalidOption):
        run(noise, parse_options(options), stand_ins.models())
    assert 1 < max(rendered) < 12


def test_one_cutout_of_the_largest_picture_always_fits() -> None:
    assert answer_size.ANSWER_MAX_BYTES > 7680 * 4320 * 4 * 1.05


# ------------------------------------------------------------------------------------------------------- the time


def test_mattes_that_cannot_be_in_time_are_refused_before_the_network_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    matter, pace = Matter(monkeypatch, 0.275), Pace()
    cut(matter, pace, 30.0)
    matter.calls.clear()
    matter.now = 0.0
    with pytest.raises(ProcessingTimeout) as refused:
        cut(matter, pace, 3.0, boxes=boxes(100))
    assert matter.calls == []
    assert "elapsed_seconds" in refused.value.details
    cut(matter, pace, 3.0, boxes=boxes(8))  # what can be in time is done


def test_a_network_that_slows_down_ends_a_picture_before_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    matter, pace = Matter(monkeypatch, 0.05), Pace()
    cut(matter, pace, 30.0)
    matter.calls.clear()
    matter.now, matter.seconds_per_crop = 0.0, 0.5
    with pytest.raises(ProcessingTimeout):
        cut(matter, pace, 6.0, boxes=boxes(64))
    # The estimate is that of the fastest call, so that some are made; none begins that would end after the deadline.
    assert 0 < sum(matter.calls) < 16
    assert matter.now <= 6.0 + MODEL_MAX_BATCH * 0.5


def test_calls_are_short_on_a_slow_network_and_full_batches_on_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds_per_crop, expected in ((0.01, [8, 8]), (0.3, [3, 3, 2] * 2), (5.0, [1] * 16)):
        matter, pace = Matter(monkeypatch, seconds_per_crop), Pace()
        cut(matter, pace, 1e6)
        matter.calls.clear()
        answer = cut(matter, pace, 1e6, boxes=boxes(16), subject="each")
        assert matter.calls == expected
        assert len(answer.images) == 16


def test_much_work_for_an_unknown_network_begins_with_one_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    matter = Matter(monkeypatch, 1.5)
    with pytest.raises(ProcessingTimeout):
        cut(matter, Pace(), 3.0, boxes=boxes(100))
    assert matter.calls == [1]


def test_a_refusal_is_not_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is refused by an estimate that has become wrong is served after a few refusals at most."""
    matter, pace = Matter(monkeypatch, 10.0), Pace()
    cut(matter, pace, 1e6)
    matter.now, matter.seconds_per_crop = 0.0, 0.01
    refusals = 0
    while True:
        try:
            cut(matter, pace, 3.0)
            break
        except ProcessingTimeout:
            refusals += 1
    assert 1 <= refusals <= 8


def checks_before(end: int, error: Exception) -> Callable[[], None]:
    """A check that passes so often, and then raises."""
    left = [end]

    def proceed() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error

    return proceed


def test_who_leaves_between_two_batches_gets_no_third_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matter = Matter(monkeypatch, 0.01)
    with pytest.raises(RequestCancelled):
        run(
            SCENE,
            parse_options({"boxes": boxes(64)}),
            Models(stand_ins.detector, matter, stand_ins.SIDE),
            proceed=checks_before(3, RequestCancelled("gone")),  # one for the detector, two for batches
        )
    assert matter.calls == [1, 7]  # the first one shows how fast the network is


def test_who_leaves_between_two_people_costs_no_third_one(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[int] = []
    import pipeline.layers

    original = pipeline.layers.put_back
    monkeypatch.setattr(pipeline.layers, "put_back", lambda *given: placed.append(1) or original(*given))
    with pytest.raises(RequestCancelled):
        run(
            SCENE,
            parse_options({"boxes": boxes(8)}),
            stand_ins.models(),
            proceed=checks_before(4, RequestCancelled("gone")),  # detector, one batch, the cut-out, a second person
        )
    assert len(placed) == 2
