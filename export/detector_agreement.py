"""How far YOLOv8-seg, as Triton and the pipeline run it, is from Ultralytics' own predict on a picture.

`predict` asks Ultralytics, in a process of its own; `detect` goes the pipeline's way; `compare` holds one to the other.
Where the pipeline differs on purpose, what is compared stands before the difference, and `compare` says why.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from export import ExportError
from export.plans.pictures import CHECKOUT

if TYPE_CHECKING:
    from pipeline.detect import Detections

LOCK = "requirements/oracle.txt"
PACKAGES = ("ultralytics", "torchvision")

BOX_PX, SCORE = 0.05, 5e-4
"""Largest difference of a box's side, in pixels of the letterbox, and of a score, that is still rounding: sums in
float32 in another order. Trained weights give 0.0002 px and 3e-6, untrained ones 0.013 px and 8e-5."""
SQUARE_SHARE = 2e-4
"""Share of the masks' pixels in the letterbox that may differ: those whose logit is zero but for rounding."""
ASIDE_SHARE = 2e-3
"""Share of the masks' pixels in the picture that may be further than a pixel from where Ultralytics has them: spots and
necks of a pixel or two, which its enlarging in two steps smooths away. The worst seen is 1.1e-3, among ragged masks of
scores down to 0.05; there every pixel of the pipeline's was within one of exact interpolation."""

QUIET = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}
"""What Ultralytics gets to see: it sends no usage, fetches nothing, installs nothing, and reads a checkpoint with
`weights_only`. Its settings go into a folder that is thrown away."""


Detector = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]


class NoOracle(ExportError):
    """Ultralytics is not installed.

    ultralytics is not installed; run: python -m pip install --no-deps --require-hashes -r requirements/oracle.txt
    """


class OracleFailed(ExportError):
    """Ultralytics' process came to a bad end."""


class Found(NamedTuple):
    """People whom Ultralytics found in one picture, best score first.

    `boxes` float32 [N, 4] (x1, y1, x2, y2 in pixels of the picture), `scores` float32 [N], `square_masks` bool
    [N, 640, 640] over the letterbox, `masks` bool [N, H, W] over the picture; of both the part within the box.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    square_masks: NDArray[np.bool_]
    masks: NDArray[np.bool_]


class Ours(NamedTuple):
    """The same people by the pipeline.

    Attributes:
        detections: what the pipeline makes of the detector's outputs.
        square_boxes: float32 [N, 4], as they left the detector, in pixels of the letterbox.
        last_score: of the candidates that leave the graph, the worst one's.
    """

    detections: "Detections"
    square_boxes: NDArray[np.float32]
    last_score: float


class Comparison(NamedTuple):
    """How far both are apart on one picture; NaN where they did not find as many.

    Attributes:
        people: how many the pipeline found, of those that score above `last_score`.
        expected: how many Ultralytics found, of the same.
        cut_off: how many more Ultralytics found.
        boxes_px: largest difference of a side of a box, in pixels of the letterbox.
        scores: largest difference of a score.
        square_pixels: how many pixels of the masks differ in the letterbox.
        square_area: pixels of Ultralytics' masks there.
        aside_pixels: how many pixels of the masks in the picture are further than a pixel from where they should be.
        edge_pixels: how many are elsewhere, but no further, or at the edge of a box.
        area: pixels of Ultralytics' masks in the picture.
        last_score: of the candidates that leave the graph, the worst one's.
    """

    people: int
    expected: int
    cut_off: int
    boxes_px: float
    scores: float
    square_pixels: int
    square_area: int
    aside_pixels: int
    edge_pixels: int
    area: int
    last_score: float

    @property
    def agrees(self) -> bool:
        # A NaN compares false, so it fails.
        return (
            self.people == self.expected
            and self.boxes_px <= BOX_PX
            and self.scores <= SCORE
            and self.square_pixels <= SQUARE_SHARE * self.square_area
            and self.aside_pixels <= ASIDE_SHARE * self.area
        )


def check_oracle() -> None:
    """Raise `NoOracle` where Ultralytics, or what it looks for at its import, is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NoOracle(
            f"{' and '.join(missing)} not installed; run: {Path(sys.executable).name} -m pip install --no-deps "
            f"--require-hashes -r {LOCK}"
        )


def predict(
    weights: Path, pictures: Sequence[NDArray[np.uint8]], min_confidence: float, threads: int = 1
) -> list[Found]:
    """People in pictures, uint8 [H, W, 3] RGB, by Ultralytics' predict in a process of its own.

    Raises:
        NoOracle: it is not installed.
        OracleFailed: it could not do it; the message holds the end of what it said.
    """
    check_oracle()
    from cutaway.contract.limits import DETECTOR_SIDE_PX, PERSON_CLASS
    from pipeline.tuning import NMS_IOU

    options = {"conf": min_confidence, "iou": NMS_IOU, "imgsz": DETECTOR_SIDE_PX, "classes": [PERSON_CLASS]}
    with tempfile.TemporaryDirectory(prefix="cutaway-oracle-") as name:
        folder = Path(name)
        order = {"weights": str(weights.resolve()), "threads": threads, "predict": options}
        (folder / "order.json").write_text(json.dumps(order))
        for number, picture in enumerate(pictures):
            np.save(folder / f"{number:06}.npy", picture)
        environment = {**os.environ, **QUIET, "YOLO_CONFIG_DIR": str(folder / "settings")}
        (folder / "settings").mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "export.ultralytics_predict", name],
            cwd=CHECKOUT,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-5:]
            raise OracleFailed(f"Ultralytics' predict ended with status {done.returncode}: " + "\n".join(said))
        results = []
        for number in range(len(pictures)):
            with np.load(folder / f"{number:06}.npz", allow_pickle=False) as arrays:
                results.append(Found(**{field: arrays[field] for field in Found._fields}))
        return results


def open_detector(path: Path, threads: int = 1) -> Detector:
    """An exported detector: uint8 [640, 640, 3] RGB, letterboxed → its outputs by name, without the batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def detect(square: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        return {
            name: values[0] for name, values in zip(names, session.run(names, {"images": square[None]}), strict=True)
        }

    return detect


def detect(detector: Detector, picture: NDArray[np.uint8], min_confidence: float) -> Ours:
    """People in a picture, uint8 [H, W, 3] RGB, by the pipeline."""
    from pipeline.detect import read_detections
    from pipeline.letterbox import letterbox

    square, placement = letterbox(picture)
    raw = detector(square)
    found = read_detections(raw, placement, min_confidence)
    placed = placement.to_picture(raw["boxes"])
    origins = [
        np.flatnonzero((raw["scores"] == score) & (placed == box).all(axis=1))[0]
        for box, score in zip(found.boxes, found.scores, strict=True)
    ]
    return Ours(found, raw["boxes"][np.array(origins, int)], float(raw["scores"][-1]))


def square_masks(ours: Ours) -> NDArray[np.bool_]:
    """Masks over the letterbox, bool [N, 640, 640], cut at the boxes as Ultralytics cuts them.

    The pipeline itself never makes these: it samples the same logits where it needs them. And it takes a pixel to be
    in a box by the pixel's centre, where Ultralytics goes by its corner.
    """
    from cutaway.contract.limits import DETECTOR_SIDE_PX as SIDE

    masks = np.zeros((len(ours.square_boxes), SIDE, SIDE), bool)
    for mask, logits, box in zip(masks, ours.detections.masks, ours.square_boxes, strict=True):
        enlarged = cv2.resize(logits, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        mask[:] = (enlarged > 0) & _inside(box, mask.shape, 0.0)
    return masks


def _inside(box: NDArray[np.float32], size_hw: tuple[int, ...], place: float) -> NDArray[np.bool_]:
    """Pixels [H, W] in a box: those whose place is, 0 for the upper left corner, 0.5 for the centre."""
    x1, y1, x2, y2 = box
    rows, columns = (np.arange(side) + place for side in size_hw)
    return ((rows >= y1) & (rows < y2))[:, None] & (columns >= x1) & (columns < x2)


def picture_masks(ours: Ours) -> NDArray[np.bool_]:
    """Masks over the picture, bool [N, H, W], as the pipeline places them."""
    from pipeline.geometry import whole
    from pipeline.masks import mask_logits

    placement = ours.detections.placement
    size_wh = placement.width, placement.height
    return mask_logits(ours.detections, range(len(ours.square_boxes)), whole(*size_wh), size_wh) > 0


def compare(ours: Ours, expected: Found) -> Comparison:
    """Hold the pipeline's people to Ultralytics'.

    Not differences, since meant: the pipeline drops a box of which less than a pixel is in the picture, Ultralytics one
    whose mask is empty, so people without a mask are left out here; boxes cut masks otherwise (see `square_masks`), and
    the rows and columns where that matters are left out; in the picture the masks' edges may be a pixel off (of the
    letterbox, or of the picture where that is larger), because OpenCV samples at 32 places between two prototypes and
    Ultralytics enlarges in two steps. And 300 candidates leave the graph, best first: whoever scores no better than the
    last of them may be lost, and nobody else is touched, since nobody is suppressed by someone who scores less.
    """
    squares = square_masks(ours)
    # Clear of the last one, which is on one side only by rounding.
    least = ours.last_score + SCORE
    there = squares.any(axis=(1, 2)) & (ours.detections.scores > least)
    scores, boxes = ours.detections.scores[there], ours.detections.boxes[there]
    above = expected.scores > least
    cut_off = int((~above).sum())
    expected = Found(*(field[above] for field in expected))
    counts = int(there.sum()), len(expected.scores), cut_off
    if counts[0] != counts[1]:
        return Comparison(*counts, np.nan, np.nan, 0, 0, 0, 0, 0, ours.last_score)
    placement = ours.detections.placement
    scale = np.array([placement.scale_x, placement.scale_y] * 2)
    masks = picture_masks(ours)[there]
    reach_px = max(1, round(1 / min(placement.scale_x, placement.scale_y)))
    aside = 0
    for mask, wanted, box in zip(masks, expected.masks, expected.boxes, strict=True):
        cut_otherwise = _inside(box, wanted.shape, 0.0) ^ _inside(box, wanted.shape, 0.5)
        aside += _aside(np.where(cut_otherwise, wanted, mask), wanted, reach_px)
    return Comparison(
        *counts,
        _largest((boxes.astype(np.float64) - expected.boxes) * scale),
        _largest(scores.astype(np.float64) - expected.scores),
        int((squares[there] ^ expected.square_masks).sum()) if counts[0] else 0,
        int(expected.square_masks.sum()),
        aside,
        int((masks ^ expected.masks).sum()) - aside,
        int(expected.masks.sum()),
        ours.last_score,
    )


def _aside(mask: NDArray[np.bool_], wanted: NDArray[np.bool_], reach_px: int) -> int:
    """How many pixels of a mask [H, W] are not where it should be, nor that near to its edge."""
    square = np.ones((2 * reach_px + 1,) * 2, np.uint8)
    widest = cv2.dilate(wanted.astype(np.uint8), square) > 0
    narrowest = cv2.erode(wanted.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    return int((mask & ~widest).sum() + (narrowest & ~mask).sum())


def _largest(differences: NDArray[np.float64]) -> float:
    return float(np.abs(differences).max()) if differences.size else 0.0
