"""The gate lets half precision pass and refuses broken networks, run in the plan's place by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

from export.half_emulation import emulate
from export.plan import Reference
from export.plans.gate import (
    SMALL_PX,
    Arrays,
    NothingToCompare,
    Run,
    Verdict,
    batches,
    judge_detector,
    judge_matte,
    one_by_one,
)
from export.plans.pictures import (
    COLLAGES,
    SAMPLES,
    VIEWS,
    Pictures,
    PicturesMissing,
    find_pictures,
    take_pictures,
)
from export.precision import to_half
from runtime.plans import MEAN_ALPHA_ERROR
from tests.export.half_graphs import DEFORMABLE

NANO = Path(__file__).resolve().parents[2] / "export" / "weights" / "nano"
MATTE, DETECTOR = DEFORMABLE, NANO / "yolov8_seg.onnx"
SIDE_PX = 384


class Ground(NamedTuple):
    """What every test compares on, computed once."""

    views: Pictures
    mattes: Arrays
    detections: Arrays
    matte: Run
    detector: Run


def remembering(run: Run) -> Run:
    """The same, but what was answered once is not computed again."""
    answers: dict[bytes, Arrays] = {}

    def ask(images: np.ndarray) -> Arrays:
        key = images.tobytes()
        if key not in answers:
            answers[key] = dict(run(images))
        return answers[key]

    return ask


@pytest.fixture(scope="module")
def ground() -> Ground:
    matte, detector = remembering(Reference(MATTE)), remembering(Reference(DETECTOR))
    views = take_pictures(find_pictures(SAMPLES), detector, SIDE_PX)
    return Ground(views, one_by_one(matte, views.crops), one_by_one(detector, views.squares), matte, detector)


def running(model: ModelProto) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def judged_matte(ground: Ground, run: Run) -> Verdict:
    return judge_matte(run, ground.views.crops, ground.mattes, 8)


def judged_detector(ground: Ground, run: Run) -> Verdict:
    return judge_detector(run, ground.views.squares, ground.detections, 8)


# ------------------------------------------------------------------------------------------------ what passes


def test_the_views_are_all_different_and_as_the_pipeline_feeds_them(ground: Ground) -> None:
    assert ground.views.squares.shape == (VIEWS + len(COLLAGES), 640, 640, 3)
    assert ground.views.crops.shape == (VIEWS, SIDE_PX, SIDE_PX, 3)
    for images in (ground.views.squares, ground.views.crops):
        assert len({image.tobytes() for image in images}) == len(images)
    assert (ground.detections["scores"].max(axis=1) > 0.5).all(), "a view shows nobody"


def test_a_faithful_plan_passes(ground: Ground) -> None:
    matte, detector = judged_matte(ground, ground.matte), judged_detector(ground, ground.detector)
    assert matte.passed and detector.passed
    assert matte.figures["batches"] == list(range(1, 9)) == detector.figures["batches"]
    # ONNX Runtime sums a batch in another order than one picture.
    assert matte.figures["mean_alpha_error"] < MEAN_ALPHA_ERROR / 20
    assert detector.figures["max_box_px"] < 0.05


def test_half_precision_passes(ground: Ground, tmp_path: Path) -> None:
    """As a GPU rounds it, with everything in half: more than what `export onnx` writes gives up."""
    for source, judge in ((MATTE, judged_matte), (DETECTOR, judged_detector)):
        half = tmp_path / source.name
        to_half(source, half, keep=())
        verdict = judge(ground, running(emulate(onnx.load(half))))
        assert verdict.passed, verdict.reasons
        different = verdict.figures.get("mean_alpha_error", verdict.figures.get("mean_box_px"))
        assert different > 1e-4, "nothing was rounded, so that passing says nothing"


# ------------------------------------------------------------------------------------------------ mattes that do not


def with_attribute(operator: str, **values: Any) -> ModelProto:
    """The matting network with other attributes on every node of an operator."""
    model = onnx.load(MATTE)
    nodes = [node for node in model.graph.node if node.op_type == operator]
    assert nodes
    for node in nodes:
        kept = [each for each in node.attribute if each.name not in values]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in values.items())])
    return model


def with_nan(path: Path, name: str) -> ModelProto:
    """A network of which one weight is no number; `name` is a part of its tensor's."""
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if name in each.name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize(
    ("sabotage", "why"),
    [
        # What TensorRT makes of the GridSample of opset 20.
        (lambda: with_attribute("GridSample", mode="nearest"), "mean alpha error"),
        (lambda: with_attribute("GridSample", align_corners=1), "mean alpha error"),
        (lambda: with_attribute("GridSample", padding_mode="border"), "mean alpha error"),
        (lambda: with_nan(MATTE, "weight"), "mean alpha error"),
    ],
    ids=["nearest", "align_corners", "border", "nan"],
)
def test_a_broken_matting_graph_is_refused(ground: Ground, sabotage: Callable[[], ModelProto], why: str) -> None:
    verdict = judged_matte(ground, running(sabotage()))
    assert not verdict.passed
    assert any(why in reason for reason in verdict.reasons), verdict.reasons


def channels_turned(run: Run) -> Run:
    return lambda images: run(np.ascontiguousarray(np.roll(images, 1, axis=3)))


def mates_mixed(run: Run) -> Run:
    return lambda images: {name: np.roll(values, 1, axis=0) for name, values in run(images).items()}


def last_of_a_full_batch_lost(run: Run) -> Run:
    def broken(images: np.ndarray) -> Arrays:
        outputs = {name: values.copy() for name, values in run(images).items()}
        if len(images) == 8:
            for values in outputs.values():
                values[-1] = 0
        return outputs

    return broken


def batch_by_first(run: Run) -> Run:
    """Every picture of a batch gets the answer of the first."""
    return lambda images: {name: values[[0] * len(images)] for name, values in run(images).items()}


def zeros_for(*sizes: int) -> Callable[[Run], Run]:
    """Batches of these sizes get nothing but zeros: a kernel that is used for them alone is broken."""

    def fault(run: Run) -> Run:
        def broken(images: np.ndarray) -> Arrays:
            outputs = run(images)
            lost = len(images) in sizes
            return {name: np.zeros_like(values) if lost else values for name, values in outputs.items()}

        return broken

    return fault


FAULTS = pytest.mark.parametrize(
    "fault",
    [
        channels_turned,
        mates_mixed,
        last_of_a_full_batch_lost,
        batch_by_first,
        *(zeros_for(size) for size in range(1, 9)),
        zeros_for(2, 4, 5, 6, 7),
    ],
)


@FAULTS
def test_mattes_of_the_wrong_pictures_are_refused(ground: Ground, fault: Callable[[Run], Run]) -> None:
    verdict = judged_matte(ground, fault(ground.matte))
    assert not verdict.passed
    mixed = fault in (mates_mixed, batch_by_first)
    assert ("pictures of one batch are mixed up" in verdict.reasons) == mixed, verdict.reasons


@FAULTS
def test_detections_of_the_wrong_pictures_are_refused(ground: Ground, fault: Callable[[Run], Run]) -> None:
    assert not judged_detector(ground, fault(ground.detector)).passed


# ------------------------------------------------------------------------------------------------ detections


def changed(run: Run, **change: Callable[[np.ndarray], np.ndarray]) -> Run:
    """The same with some outputs passed through functions."""
    return lambda images: {
        name: change[name](values.copy()).astype(values.dtype) if name in change else values
        for name, values in run(images).items()
    }


def lose_the_best(scores: np.ndarray) -> np.ndarray:
    scores[:, 0] = 0
    return scores


def invent_one(scores: np.ndarray) -> np.ndarray:
    scores[:, -1] = 0.9
    return scores


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"boxes": lambda boxes: boxes[..., [1, 0, 3, 2]]}, "boxes are off"),
        ({"boxes": lambda boxes: boxes + 2}, "boxes are off"),
        ({"scores": lambda scores: scores * 0.95}, "scores are off"),
        ({"scores": lose_the_best}, "has no counterpart"),
        ({"scores": invent_one}, "has no counterpart"),
        ({"classes": lambda classes: classes + 1}, "has no counterpart"),
        ({"prototypes": lambda prototypes: prototypes[:, [1, 0, *range(2, 32)]]}, "masks overlap"),
        ({"prototypes": lambda prototypes: np.roll(prototypes, 2, axis=3)}, "masks overlap"),
        ({"coefficients": lambda coefficients: -coefficients}, "masks overlap"),
        ({"boxes": lambda boxes: boxes * np.nan}, "no numbers"),
    ],
)
def test_changed_detections_are_refused(
    ground: Ground, change: dict[str, Callable[[np.ndarray], np.ndarray]], why: str
) -> None:
    verdict = judged_detector(ground, changed(ground.detector, **change))
    assert not verdict.passed
    assert any(why in reason for reason in verdict.reasons), verdict.reasons


def losing(lost: Callable[[Arrays], np.ndarray]) -> Callable[[Run], Run]:
    """Candidates for which `lost` is true score nothing."""

    def fault(run: Run) -> Run:
        def broken(images: np.ndarray) -> Arrays:
            outputs = dict(run(images))
            outputs["scores"] = np.where(lost(outputs), 0, outputs["scores"]).astype(np.float32)
            return outputs

        return broken

    return fault


def sides_px(outputs: Arrays) -> np.ndarray:
    return (outputs["boxes"][..., 2:] - outputs["boxes"][..., :2]).max(axis=-1)


@pytest.mark.parametrize("side_px", [32, 64, 96, 128])
def test_losing_the_small_is_refused(ground: Ground, side_px: int) -> None:
    fault = losing(lambda outputs: sides_px(outputs) < side_px)
    assert not judged_detector(ground, fault(ground.detector)).passed


@pytest.mark.parametrize("score", [0.08, 0.1, 0.15, 0.2, 0.25])
def test_losing_low_scores_is_refused(ground: Ground, score: float) -> None:
    fault = losing(lambda outputs: outputs["scores"] < score)
    verdict = judged_detector(ground, fault(ground.detector))
    assert any("low scores are off" in reason for reason in verdict.reasons), verdict.reasons


@pytest.mark.parametrize("factor", [0.2, 0.5, 0.8, 1.25])
def test_flatter_or_steeper_masks_are_refused(ground: Ground, factor: float) -> None:
    """They lie where they should, so that their overlap does not show it."""
    verdict = judged_detector(ground, changed(ground.detector, prototypes=lambda values: values * factor))
    assert [reason.split(" off")[0] for reason in verdict.reasons] == ["masks' values are"]


def test_views_without_anybody_small_prove_nothing(ground: Ground) -> None:
    large = ground.views.squares[:VIEWS]
    wanted = {name: values[:VIEWS] for name, values in ground.detections.items()}
    assert sides_px(wanted)[wanted["scores"] >= 0.05].min() > SMALL_PX
    with pytest.raises(NothingToCompare, match="nobody smaller than 64 px"):
        judge_detector(ground.detector, large, wanted, 8)


def test_a_detector_with_a_weight_that_is_no_number_is_refused(ground: Ground) -> None:
    assert not judged_detector(ground, running(with_nan(DETECTOR, "conv.weight"))).passed


# ------------------------------------------------------------------------------------------------ forms


def test_outputs_of_another_form_are_refused(ground: Ground) -> None:
    for change, why in (
        (lambda alphas: alphas[:, :-1], "should be uint8"),
        (lambda alphas: alphas[:1], "for a batch of 2"),
        (lambda alphas: alphas.astype(np.float32), "is float32"),
    ):
        verdict = judged_matte(ground, lambda images, change=change: {"alphas": change(ground.matte(images)["alphas"])})
        assert not verdict.passed and why in verdict.reasons[0]
    verdict = judged_matte(ground, lambda _images: {})
    assert verdict.reasons == ("it has no output alphas",)


def test_pictures_that_show_nothing_prove_nothing(ground: Ground, tmp_path: Path) -> None:
    grey = np.full((2, SIDE_PX, SIDE_PX, 3), 114, np.uint8)
    empty = {"alphas": np.zeros((2, SIDE_PX, SIDE_PX), np.uint8)}
    with pytest.raises(NothingToCompare, match="--pictures"):
        judge_matte(lambda _images: empty, grey, empty, 8)
    squares = np.full((1, 640, 640, 3), 114, np.uint8)
    with pytest.raises(NothingToCompare, match="finds nobody;"):
        judge_detector(ground.detector, squares, one_by_one(ground.detector, squares), 8)
    with pytest.raises(PicturesMissing, match="has no pictures"):
        find_pictures(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    with pytest.raises(PicturesMissing, match="cannot be read"):
        take_pictures(find_pictures(tmp_path), ground.detector, SIDE_PX)


@pytest.mark.parametrize(("count", "largest"), [(8, 8), (24, 8), (9, 8), (8, 2), (8, 1), (2, 8)])
def test_every_picture_is_in_a_batch_of_its_own_size(count: int, largest: int) -> None:
    rows = batches(count, largest)
    assert {index for row in rows for index in row} == set(range(count))
    assert {len(row) for row in rows} == set(range(1, min(largest, count) + 1))
    assert max(len(row) for row in rows) == min(largest, count)
    assert all(len(set(row)) == len(row) for row in rows)
