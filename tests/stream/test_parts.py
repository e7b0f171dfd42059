"""The parts of a stream, each for itself."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from cutaway.contract.errors import InvalidOption, Overloaded
from cutaway.contract.options import parse_stream_options
from numpy.typing import NDArray
from stream.alpha import alpha_of
from stream.backdrop import cover, put_before
from stream.fit import Fit, fill, free, square
from stream.people import find, mask_of
from stream.smooth import Smoother, motion
from stream.states import State, States, begin
from stream.tuning import MAX_ASPECT, STRIDE_PX

from benchmarks.stream import DETECTOR_WH, HEIGHT, WIDTH
from runtime.compose import STREAM_DETECTOR_PIXELS
from tests.pipeline.stand_ins import draw
from tests.stream.stand_ins import detector

NOBODY = np.zeros((0, 4), np.float32)

# --------------------------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize(
    "size",
    [(640, 480), (480, 640), (1280, 720), (1920, 1080), (640, 640), (854, 480), (2000, 300), (64, 64), (333, 517)],
)
def test_free_sides_keep_the_frames_shape(size: tuple[int, int]) -> None:
    width, height = size
    fit = free(width, height, STREAM_DETECTOR_PIXELS)
    assert fit.width % STRIDE_PX == fit.height % STRIDE_PX == 0
    assert 0.8 < fit.width * fit.height / STREAM_DETECTOR_PIXELS < 1.25
    assert abs((fit.inner_width / fit.inner_height) / (width / height) - 1) < 0.1
    assert 0 <= fit.left <= fit.width - fit.inner_width
    assert 0 <= fit.top <= fit.height - fit.inner_height
    if 1 / MAX_ASPECT < width / height < MAX_ASPECT:
        assert (fit.inner_width, fit.inner_height) == (fit.width, fit.height)  # nothing is spent on margins


def test_the_benchmark_measures_the_size_that_streams_use() -> None:
    fit = free(WIDTH, HEIGHT, STREAM_DETECTOR_PIXELS)
    assert (fit.width, fit.height) == DETECTOR_WH


@pytest.mark.parametrize("fit", [square(600, 300, 640), free(1200, 300, STREAM_DETECTOR_PIXELS)])
def test_margins_are_grey(fit: Fit) -> None:
    canvas = fill(fit, np.full((300, 600, 3), 255, np.uint8), swap=False)
    assert canvas.shape == (fit.height, fit.width, 3)
    inner = canvas[fit.top : fit.top + fit.inner_height, fit.left : fit.left + fit.inner_width]
    assert (inner == 255).all()
    assert (canvas == 255).sum() == inner.size


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("fit_of", [lambda w, h: square(w, h, 640), lambda w, h: free(w, h, STREAM_DETECTOR_PIXELS)])
@pytest.mark.parametrize("size", [(640, 480), (400, 640), (1200, 400)])
def test_alpha_lies_on_the_people(fit_of, size: tuple[int, int]) -> None:
    """In frames of any shape, whether they are letterboxed or stretched, to a pixel or two."""
    width, height = size
    scene = draw(width, height, [(width // 3, height // 2, width // 9, height // 4)])
    fit = fit_of(width, height)
    raw = {name: values[0] for name, values in detector(fill(fit, scene, swap=False)[None]).items()}
    found = find(raw, fit, 0.35, NOBODY)
    alpha = alpha_of(mask_of(found, fit, *raw["prototypes"].shape[1:]), fit, width, height)
    truth = (scene[..., 0] == 200) & (scene[..., 1] == 30)
    overlap = ((alpha > 127) & truth).sum() / ((alpha > 127) | truth).sum()
    assert overlap > 0.94
    moments = [cv2.moments(mask.astype(np.uint8)) for mask in (alpha > 127, truth)]
    for axis in ("m10", "m01"):
        first, second = (moment[axis] / moment["m00"] for moment in moments)
        assert abs(first - second) < 1.0


def test_edges_are_narrow_and_not_jagged() -> None:
    """A slanted edge: its half-way line is straight to a fraction of a cell, which has five pixels."""
    y, x = np.mgrid[0:96, 0:128].astype(np.float32)
    mask = np.clip((x - 64 + 0.3 * (y - 48)) / 2, -1, 1)
    alpha = alpha_of(mask, Fit(512, 384, 0, 0, 512, 384), 640, 480).astype(np.float32)
    crossing = np.array([np.interp(127.5, row, np.arange(640)) for row in alpha[40:440]])
    line = np.polyval(np.polyfit(np.arange(400), crossing, 1), np.arange(400))
    assert np.abs(crossing - line).max() < 1.0
    soft = ((alpha > 12) & (alpha < 243)).sum(axis=1)
    assert soft.max() < 3 * 5


def test_holes_and_islands() -> None:
    """A badge is filled and a poster goes; the gap between arm and body stays, and so does a second person."""
    logits = np.full((96, 128), -4.0, np.float32)
    logits[20:90, 30:70] = 4
    logits[30:33, 40:43] = -4
    logits[50:75, 50:58] = -4
    logits[40:80, 90:110] = 4
    logits[5:8, 100:103] = 4
    raw = {
        "boxes": np.array([[0, 0, 512, 384]], np.float32),
        "scores": np.array([0.9], np.float32),
        "classes": np.array([0], np.int32),
        "coefficients": np.eye(1, 32, dtype=np.float32),
        "prototypes": np.zeros((32, 96, 128), np.float32),
    }
    raw["prototypes"][0] = logits
    fit = Fit(512, 384, 0, 0, 512, 384)
    mask = mask_of(find(raw, fit, 0.35, NOBODY), fit, 96, 128) > 0
    assert mask[31, 41]
    assert not mask[60, 54]
    assert mask[60, 100]
    assert not mask[6, 101]


def test_somebody_who_was_there_stays_with_less_confidence() -> None:
    scene = draw(512, 384, [(200, 200, 60, 120)])
    fit = Fit(512, 384, 0, 0, 512, 384)
    unsure = {name: values[0] for name, values in detector(scene[None], (0.25, 0.25, 0.25)).items()}
    assert len(find(unsure, fit, 0.35, NOBODY).boxes) == 0
    there = np.array([[138, 82, 262, 318]], np.float32)
    assert len(find(unsure, fit, 0.35, there).boxes) == 1
    assert len(find(unsure, fit, 0.35, there + 200).boxes) == 0  # that was somebody else
    assert len(find(unsure, fit, 0.5, there).boxes) == 0  # too little even so


# --------------------------------------------------------------------------------------------------------- over time


def grey_noise(seed: int, rows: int = 96, columns: int = 128) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(120, 1.0, (rows, columns, 3))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def test_a_still_picture_averages_masks() -> None:
    smoother, rng = Smoother(0.8), np.random.default_rng(0)
    noise = [rng.normal(0, 0.3, (96, 128)).astype(np.float32) for _ in range(30)]
    smoothed = [smoother.next(mask, grey_noise(seed)) for seed, mask in enumerate(noise)][10:]
    # The variance of such an average is gain / (2 − gain) of the single one's.
    assert np.std(smoothed) == pytest.approx(0.3 * (0.2 / 1.8) ** 0.5, rel=0.1)


@pytest.mark.parametrize("share", [0.1, 0.7], ids=["somebody", "nearly everything"])
def test_where_the_picture_changes_the_new_mask_counts(share: float) -> None:
    smoother = Smoother(0.8)
    before, after = grey_noise(1), grey_noise(2)
    changed = np.zeros((96, 128), bool)
    changed[:, : round(128 * share)] = True
    after[changed] += 40
    smoother.next(np.ones((96, 128), np.float32), before)
    mask = smoother.next(-np.ones((96, 128), np.float32), after)
    assert (mask[changed] < -0.99).all()
    far = ~cv2.dilate(changed.view(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
    assert (mask[far] > 0.4).mean() > 0.98


@pytest.mark.parametrize("deviation", [0.0, 1.0, 3.0])
def test_noise_is_no_motion(deviation: float) -> None:
    """A camera's, on cells that are means of some twenty pixels: the last is one in the dark."""
    rng = np.random.default_rng(0)
    one, other = (rng.normal(120, deviation, (96, 128)).astype(np.float32) for _ in range(2))
    assert motion(one, other).mean() < 0.02


def test_light_that_changes_as_a_whole_is_no_noise() -> None:
    """Behind a change of the light somebody may move, so new masks are taken."""
    one, other = (np.random.default_rng(seed).normal(120, 1, (96, 128)).astype(np.float32) for seed in range(2))
    assert motion(one + 20, other).min() > 0.99


def test_slow_motion_adds_up() -> None:
    """A change of half a grey level per frame is noise each time, and is followed all the same."""
    smoother = Smoother(0.9)
    smoother.next(np.ones((96, 128), np.float32), grey_noise(0))
    for step in range(1, 40):
        small = np.clip(grey_noise(step).astype(int), 0, 255).astype(np.uint8)
        small[:, :64] = np.clip(small[:, :64].astype(int) + step, 0, 255)
        mask = np.ones((96, 128), np.float32)
        mask[:, :64] = -1
        found = smoother.next(mask, small)
    assert (found[:, :56] < -0.9).all()


def test_another_size_begins_anew() -> None:
    smoother = Smoother(0.8)
    smoother.next(np.ones((96, 128), np.float32), grey_noise(0))
    assert (smoother.next(-np.ones((64, 64), np.float32), grey_noise(0, 64, 64)) == -1).all()


# ----------------------------------------------------------------------------------------------------------- backdrop


def test_weighing_is_exact_where_nothing_is_soft_and_close_elsewhere() -> None:
    rng = np.random.default_rng(0)
    frame, behind = rng.integers(0, 256, (2, 64, 256, 3), np.uint8)
    alpha = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    made = put_before(frame, alpha, behind)
    weight = alpha[..., None] / 255
    assert np.abs(made - (frame * weight + behind * (1 - weight))).max() <= 1
    assert np.array_equal(made[:, 255], frame[:, 255])
    assert np.array_equal(made[:, 0], behind[:, 0])


@pytest.mark.parametrize("size", [(640, 480), (100, 400), (64, 64)])
def test_a_background_covers_the_frame_and_keeps_its_shape(size: tuple[int, int]) -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    cv2.circle(picture, (150, 150), 30, (255, 255, 255), -1)
    covered = cover(picture, *size)
    assert covered.shape == (size[1], size[0], 3)
    _, _, width, height = cv2.boundingRect((covered[..., 0] > 127).astype(np.uint8))
    assert abs(width - height) <= 2


# ------------------------------------------------------------------------------------------------------------- states


def test_states_have_places_and_are_given_up_by_age() -> None:
    now = [0.0]
    states = States(3, 10.0, lambda: now[0])

    def opened() -> State:
        return begin(parse_stream_options({}), None)

    for stream in range(3):
        states.open(stream, opened)
        now[0] += 1
    with pytest.raises(Overloaded, match="all 3 places") as refused:
        states.open(9, lambda: pytest.fail("a state was made for nothing"))
    assert refused.value.details == {"max_streams": 3}
    assert "10 s" in refused.value.user_action
    assert states.get(9) is None
    assert all(states.get(stream) is not None for stream in range(3))  # nobody lost a place to it

    before = states.get(1)
    assert states.open(1, opened) is not before  # begun anew in its own place
    states.drop(0)
    states.open(9, opened)
    now[0] += 6
    assert states.get(2) is not None
    now[0] += 6
    assert states.get(1) is None  # it rested for twelve seconds, the other one for six
    assert len(states) == 1  # what is too old is not kept in memory either
    for stream in (20, 21):
        states.open(stream, opened)
    with pytest.raises(InvalidOption):
        states.open(2, lambda: begin(parse_stream_options({"quality": "0"}), None))
    assert states.get(2) is None


def opened_state() -> State:
    return begin(parse_stream_options({}), None)


def test_a_caller_with_few_streams_gets_a_place_of_who_has_most() -> None:
    now = [0.0]
    states = States(4, 10.0, lambda: now[0], 5.0)
    for stream in range(4):
        states.open(stream, opened_state, "one")
        now[0] += 0.5
    with pytest.raises(Overloaded):
        states.open(9, opened_state, "one")  # nobody takes from himself
    states.get(0, "one")
    states.open(0, opened_state, "two")
    assert states.get(1, "one") is None  # its idlest stream
    assert states.get(0, "one") is not None
    states.open(1, opened_state, "two")
    with pytest.raises(Overloaded):
        states.open(2, opened_state, "two")  # two each: nobody has more
    states.open(7, opened_state, "three")  # one of two, with one each then
    with pytest.raises(Overloaded):
        states.open(8, opened_state, "three")
    assert len(states) == 4


def test_an_idle_stream_gives_way_only_where_its_place_is_needed() -> None:
    now = [0.0]
    states = States(2, 10.0, lambda: now[0], 5.0)
    states.open(1, opened_state)
    now[0] = 5.0
    states.open(2, opened_state)
    assert states.get(1) is not None
    now[0] = 10.0
    with pytest.raises(InvalidOption):  # who brings nothing takes nothing
        states.open(3, lambda: begin(parse_stream_options({"quality": "0"}), None))
    assert len(states) == 2
    states.open(3, opened_state)
    assert states.get(2) is None
    assert states.get(1) is not None
    with pytest.raises(Overloaded, match="places") as refused:
        states.open(4, opened_state)
    assert "5 s" in refused.value.user_action


def test_nobody_reaches_a_stream_of_another_caller_by_its_id() -> None:
    states = States(4, 10.0)
    mine = states.open(77, opened_state, "me")
    assert states.get(77, "you") is None
    yours = states.open(77, opened_state, "you")
    states.drop(77, "you")
    assert states.get(77, "me") is mine is not yours


def test_a_background_is_kept_at_the_frames_size_alone() -> None:
    import gc
    import tracemalloc

    from tests.pipeline.stand_ins import as_png

    picture = as_png(np.full((2000, 3000, 3), 90, np.uint8))
    frame, alpha = np.zeros((120, 160, 3), np.uint8), np.zeros((120, 160), np.uint8)
    tracemalloc.start()
    try:
        state = begin(parse_stream_options({"background": "picture"}), picture)
        state.backdrop.fit(160, 120)
        gc.collect()
        kept_bytes, _ = tracemalloc.get_traced_memory()
        assert kept_bytes < 2_000_000  # the picture has 18 MB
    finally:
        tracemalloc.stop()
    assert (state.backdrop.behind(frame, alpha) == 90).all()
    larger = state.backdrop.behind(np.zeros((240, 320, 3), np.uint8), np.zeros((240, 320), np.uint8))
    assert larger.shape == (240, 320, 3)
    assert (larger == 90).all()
