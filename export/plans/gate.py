"""The gate: does a plan compute what its network does?

Several versions of TensorRT got GridSample wrong without a word (sampled the nearest value, or shifted), so that a plan
is compared with ONNX Runtime running the float32 file, on photographs, before it is installed. What is compared is any
callable, so that the gate's own tests put broken networks in the plan's place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import ExportError
from runtime.plans import MEAN_ALPHA_ERROR

Run = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""uint8 [N, side, side, 3] → the outputs by name, each with N in front."""
Arrays = dict[str, NDArray[Any]]

WORST_PICTURE_FACTOR = 3.0
"""One picture may be this much worse than the bound of the mean: edges of hair weigh more in some than in others. Half
precision is at 0.0011, the nearest value at 0.0044."""
MIN_IOU = 0.98
"""Of each picture's foreground, alpha at least a half."""

MEAN_BOX_PX, WORST_BOX_PX = 1.0, 8.0
"""Bounds of the detector's boxes, in letterboxed pixels. Half precision throughout: 0.15 and 0.69, and once 3 px where
a person left the picture, so that the box's end was undecided (docs/precision.md)."""
MEAN_SCORE, WORST_SCORE = 0.01, 0.2
"""Bounds of its scores; half precision: 0.002 and 0.08. The mean is held for those who score little alone too."""
MEAN_MASK_IOU, MEAN_MASK_ERROR = 0.98, 0.01
"""Bounds of its masks, where they are above a half, and of their values (0 to 1); half precision: 0.999 and 0.0006."""
SCORE_FROM = 0.05
"""People that are compared: the least that callers may ask for, and streams keep sight of those who score little."""
FAINT_BELOW = 0.25
"""Who scores less is seen by streams, or where callers ask for it. Of other classes, at which the pipeline does not
look, what scores as much is compared."""
SMALL_PX = 64.0
"""Somebody whose box's longer side is below this must be among the people: networks see them by other layers."""

PERSON = 0
"""The detector's class of people."""
CLEAR_SHARE = (0.01, 0.99)
"""A picture of which less or more is foreground says little."""


class NothingToCompare(ExportError):
    """The pictures show nothing that the network finds, so that agreement would prove nothing.

    of 8 pictures none has a foreground; name a folder of photographs of people: --pictures DIR
    """


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a plan.

    Attributes:
        passed: whether it may be installed.
        reasons: why not, in words.
        figures: what was measured, with the bounds; JSON values.
    """

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, Any] = field(default_factory=dict)


def batches(count: int, largest: int) -> list[list[int]]:
    """Which pictures go into which run: every size of a batch once, and all pictures in the largest.

    TensorRT tunes its kernels for one size of the range, and live traffic makes batches of all.
    """
    rows, start = [], 0
    for size in range(1, min(largest, count)):
        rows.append([(start + place) % count for place in range(size)])
        start += size
    rows += [list(range(at, min(at + largest, count))) for at in range(0, count, largest)]
    return rows


def one_by_one(run: Run, images: NDArray[np.uint8]) -> Arrays:
    """Outputs of each picture alone, stacked: what a plan is compared with."""
    rows = [run(image[None]) for image in images]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def judge_matte(
    run: Run, images: NDArray[np.uint8], wanted: Arrays, batch_max: int, bound: float = MEAN_ALPHA_ERROR
) -> Verdict:
    """Hold a matting network to the float32 one.

    Args:
        run: the plan.
        images: uint8 [N, side, side, 3].
        wanted: `alphas`, uint8 [N, side, side], of the float32 network, picture by picture.
        batch_max: the plan's largest batch.
        bound: of the mean alpha error.

    Raises:
        NothingToCompare: see there.
    """
    goal = wanted["alphas"]
    shares = (goal >= 128).mean(axis=(1, 2))
    if not ((shares > CLEAR_SHARE[0]) & (shares < CLEAR_SHARE[1])).any():
        raise NothingToCompare(
            f"of {len(goal)} pictures none has a foreground; name a folder of photographs of people: --pictures DIR"
        )
    rows = batches(len(images), batch_max)
    found = _run_batches(run, images, rows, wanted)
    if isinstance(found, str):
        return Verdict(False, (found,))
    means, worst, ious, mixed = [], 0, [], ""
    for row, outputs in zip(rows, found, strict=True):
        for place, index in enumerate(row):
            errors = np.abs(outputs["alphas"][place].astype(np.int16) - goal[index])
            means.append(float(errors.mean()) / 255)
            worst = max(worst, int(errors.max()))
            ious.append(_iou(outputs["alphas"][place] >= 128, goal[index] >= 128))
            mixed = mixed or _mix_up(outputs["alphas"][place], goal, index, means[-1], bound)
    figures = {
        "mean_alpha_error": float(np.mean(means)),
        "worst_picture_mean_alpha_error": max(means),
        "max_alpha_error": worst / 255,
        "min_iou": min(ious),
        "bound_mean_alpha_error": bound,
        **_about(images, rows),
    }
    reasons = []
    if not figures["mean_alpha_error"] <= bound:
        reasons.append(f"its mean alpha error is {figures['mean_alpha_error']:.4f}, above the bound of {bound:g}")
    if not max(means) <= WORST_PICTURE_FACTOR * bound:
        reasons.append(
            f"of one picture the mean alpha error is {max(means):.4f}, above {WORST_PICTURE_FACTOR * bound:g}"
        )
    if not min(ious) >= MIN_IOU:
        reasons.append(f"of one picture the foreground overlaps by {min(ious):.3f} only, less than {MIN_IOU}")
    return Verdict(not reasons, (*reasons, mixed) if reasons and mixed else tuple(reasons), figures)


def judge_detector(run: Run, images: NDArray[np.uint8], wanted: Arrays, batch_max: int) -> Verdict:
    """Hold a detector to the float32 one, by the people from `SCORE_FROM` on and others from `FAINT_BELOW` on.

    Candidates come in the order of their scores, and rounding changes it, so each is compared with its nearest of the
    same class on the other side; from both sides, so that neither a lost nor an added one goes unnoticed.

    Args:
        run: the plan.
        images: letterboxed, uint8 [N, 640, 640, 3].
        wanted: the float32 network's outputs, picture by picture.
        batch_max: the plan's largest batch.

    Raises:
        NothingToCompare: see there.
    """
    people = (wanted["scores"] >= SCORE_FROM) & (wanted["classes"] == PERSON)
    sides_px = (wanted["boxes"][..., 2:] - wanted["boxes"][..., :2]).max(axis=-1)
    if not (people & (sides_px < SMALL_PX)).any():
        what = f"nobody smaller than {SMALL_PX:g} px" if people.any() else "nobody"
        raise NothingToCompare(
            f"in {len(images)} pictures the detector finds {what}; name a folder of photographs of people: "
            "--pictures DIR"
        )
    rows = batches(len(images), batch_max)
    found = _run_batches(run, images, rows, wanted)
    if isinstance(found, str):
        return Verdict(False, (found,))
    pairs: list[tuple[float, ...]] = []
    for row, outputs in zip(rows, found, strict=True):
        for place, index in enumerate(row):
            here = {name: values[place] for name, values in outputs.items()}
            there = {name: values[index] for name, values in wanted.items()}
            # Where the list is full, rounding decides who is the last of it.
            least = 2 * float(there["scores"].min())
            pairs += [*_nearest(there, here, least), *_nearest(here, there, least)]
    if not pairs:
        raise NothingToCompare(
            f"in {len(images)} pictures the detector finds more than it can say; name a folder of photographs of "
            "fewer people: --pictures DIR"
        )
    boxes, scores, ious, masks, levels = (np.array(column) for column in zip(*pairs, strict=True))
    faint = scores[levels < FAINT_BELOW]
    figures = {
        "mean_box_px": float(boxes.mean()),
        "max_box_px": float(boxes.max()),
        "mean_score_error": float(scores.mean()),
        "mean_faint_score_error": float(faint.mean()) if faint.size else 0.0,
        "max_score_error": float(scores.max()),
        "mean_mask_iou": float(ious.mean()),
        "min_mask_iou": float(ious.min()),
        "mean_mask_error": float(masks.mean()),
        "candidates": len(pairs),
        "bound_mean_box_px": MEAN_BOX_PX,
        "bound_mean_score_error": MEAN_SCORE,
        "bound_mean_mask_iou": MEAN_MASK_IOU,
        "bound_mean_mask_error": MEAN_MASK_ERROR,
        **_about(images, rows),
    }
    checks = (
        (figures["mean_box_px"] <= MEAN_BOX_PX, f"boxes are off by {boxes.mean():.2f} px on average"),
        (figures["max_box_px"] <= WORST_BOX_PX, f"a box is off by {boxes.max():.1f} px, or has no counterpart"),
        (figures["mean_score_error"] <= MEAN_SCORE, f"scores are off by {scores.mean():.3f} on average"),
        (
            figures["mean_faint_score_error"] <= MEAN_SCORE,
            f"low scores are off by {faint.mean() if faint.size else 0:.3f} on average",
        ),
        (figures["max_score_error"] <= WORST_SCORE, f"a score is off by {scores.max():.2f}"),
        (figures["mean_mask_iou"] >= MEAN_MASK_IOU, f"masks overlap by {ious.mean():.3f} on average"),
        (figures["mean_mask_error"] <= MEAN_MASK_ERROR, f"masks' values are off by {masks.mean():.3f} on average"),
    )
    reasons = tuple(words for well, words in checks if not well)
    return Verdict(not reasons, reasons, figures)


def _run_batches(
    run: Run, images: NDArray[np.uint8], rows: Sequence[Sequence[int]], wanted: Arrays
) -> list[Mapping[str, NDArray[Any]]] | str:
    """The outputs of each batch, or what is wrong with their form."""
    found = []
    for row in rows:
        outputs = run(images[list(row)])
        for name, values in wanted.items():
            output = outputs.get(name)
            if output is None:
                return f"it has no output {name}"
            if output.shape != (len(row), *values.shape[1:]) or output.dtype != values.dtype:
                return (
                    f"its output {name} is {output.dtype} {list(output.shape)} for a batch of {len(row)}, and should "
                    f"be {values.dtype} {[len(row), *values.shape[1:]]}"
                )
            if not np.isfinite(output).all():
                return f"its output {name} has values that are no numbers"
        found.append(outputs)
    return found


def _mix_up(alpha: NDArray[np.uint8], goal: NDArray[np.uint8], index: int, mean: float, bound: float) -> str:
    """Whether a wrong alpha is that of another picture, in words."""
    if mean <= bound:
        return ""
    distances = [float(np.abs(alpha.astype(np.int16) - each).mean()) / 255 for each in goal]
    nearest = int(np.argmin(distances))
    return "pictures of one batch are mixed up" if nearest != index and distances[nearest] <= bound else ""


def _nearest(source: Arrays, target: Arrays, least: float) -> list[tuple[float, ...]]:
    """For each candidate of one side its distance to the nearest of the other.

    Of the box (px), the score, the mask above a half (IoU) and the mask's values (mean error); last its score.
    """
    pairs: list[tuple[float, ...]] = []
    bounds = np.where(source["classes"] == PERSON, SCORE_FROM, FAINT_BELOW)
    for place in np.flatnonzero(source["scores"] >= np.maximum(bounds, least)):
        level = float(source["scores"][place])
        same = target["classes"] == source["classes"][place]
        apart_px = np.abs(target["boxes"] - source["boxes"][place]).max(axis=1)
        apart = np.abs(target["scores"] - level)
        # A hundredth of score counts as much as a pixel.
        nearest = int(np.where(same, apart_px + 100 * apart, np.inf).argmin())
        if not same[nearest]:
            pairs.append((float(target["boxes"].max()), 1.0, 0.0, 1.0, level))
            continue
        first, second = (_mask(side, at, source["boxes"][place]) for side, at in ((source, place), (target, nearest)))
        error = float(np.abs(first - second).mean()) if first.size else 0.0
        pairs.append((float(apart_px[nearest]), float(apart[nearest]), _iou(first > 0.5, second > 0.5), error, level))
    return pairs


def _mask(outputs: Arrays, place: int, box: NDArray[np.float32]) -> NDArray[np.float32]:
    """A candidate's mask within a box, 0 to 1, on the prototypes' grid."""
    prototypes = outputs["prototypes"]
    step = 640 / prototypes.shape[2]
    x1, y1, x2, y2 = np.clip(np.round(box / step), 0, prototypes.shape[2]).astype(int)
    window = prototypes[:, y1:y2, x1:x2]
    logits = np.tensordot(outputs["coefficients"][place], window, axes=1)
    # The logistic function, in a form that does not overflow.
    mask: NDArray[np.float32] = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return mask


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    joint = int((first | second).sum())
    return int((first & second).sum()) / joint if joint else 1.0


def _about(images: NDArray[np.uint8], rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {"pictures": len(images), "batches": sorted({len(row) for row in rows})}
