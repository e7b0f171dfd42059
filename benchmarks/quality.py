"""How good the cut-outs are: the whole pipeline against photographs with ground-truth masks.

    python -m benchmarks.quality --data ../shared/people
    python -m benchmarks.quality --split train-heldout            # what constants are tuned on

A picture in which nobody is found counts as an empty mask. Alphas are compared at half: 128 of 255 and more is the
person. Writes `quality.json`, `quality.md` and `worst.png` (the ten worst pictures, each as it is, with its true and
its found mask) into the output folder.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from cutaway.contract.errors import NoPersonDetected
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import publish, say
from benchmarks.pipeline import open_session

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ROOT / "model_repository" / "ensemble_pipeline" / "1"
THREADS = 2
SPLITS = {
    "eval": ("eval/portrait_street", "eval/ccp", "eval/pedestrians"),
    "train-heldout": (
        "train/ccp",
        "train/coco128p",
        "train2/ccp",
        "train2/cc0_faces_pseudo",
        "train2/pd_officials_pseudo",
    ),
}
FOUND_IOU = 0.5
"""A person is found when a detection box and the true box overlap this much."""
WORST = 10
PANEL_HEIGHT_PX = 260

Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Piece:
    """One cut-out as far as it is measured: a person's box, and the mask (h, w) bool at a corner of the picture."""

    box: Box
    left: int
    top: int
    mask: Mask


Subject = Literal["people", "each"]
Cutter = Callable[[bytes, Subject], list[Piece]]
"""(encoded file, subject) → masks; none where nobody is found."""


@dataclass(frozen=True)
class PictureResult:
    """What was measured on one picture; `people` is 0 where the truth has no instances."""

    folder: str
    name: str
    union_iou: float
    people: int = 0
    instance_ious: tuple[float, ...] = ()


# ------------------------------------------------------------------------------------------------ cutting out


def in_process(weights: Path) -> Cutter:
    """The pipeline in this process, its two networks in ONNX Runtime on two threads."""
    for folder in (PIPELINE, ROOT / "client"):
        sys.path.insert(0, str(folder))
    from cutaway.contract.options import parse_options
    from pipeline.run import run

    models = load_models(weights)
    cv2.setNumThreads(THREADS)

    def cut(data: bytes, subject: Subject) -> list[Piece]:
        try:
            answer = run(data, parse_options({"subject": subject, "output": "mask"}), models)
        except NoPersonDetected:
            return []
        return [
            _piece(cutout["box"], cutout["frame"], image)
            for cutout, image in zip(answer.report["cutouts"], answer.images, strict=True)
        ]

    return cut


def load_models(weights: Path) -> Any:
    """The two networks as ONNX Runtime sessions on the CPU, for `pipeline.run`."""
    from pipeline.run import Models

    detector, matter = (open_session(weights / f"{name}.onnx", THREADS) for name in ("yolov8_seg", "birefnet_trt"))
    names = [output.name for output in detector.get_outputs()]
    return Models(
        lambda images: dict(zip(names, detector.run(None, {"images": images}), strict=True)),
        lambda images: matter.run(["alphas"], {"images": images})[0],
        matter.get_inputs()[0].shape[1],
        {"profile": weights.name},
    )


def _piece(box: Sequence[float], frame: Sequence[int], image: bytes) -> Piece:
    x1, y1, x2, y2 = (float(side) for side in box)
    return Piece((x1, y1, x2, y2), frame[0], frame[1], np.asarray(Image.open(io.BytesIO(image))) >= 128)


# -------------------------------------------------------------------------------------------------- measuring


def measure(folder: Path, name: str, cut: Cutter) -> tuple[PictureResult, Mask]:
    """One picture's figures, and the union mask (H, W) that was found."""
    data = (folder / "images" / f"{name}.jpg").read_bytes()
    truth = _read(folder / "masks" / f"{name}.png") >= 128
    label = f"{folder.parent.name}/{folder.name}"
    found = placed(cut(data, "people"), truth.shape)
    instances_path = folder / "instances" / f"{name}.png"
    if not instances_path.exists():
        return PictureResult(label, name, iou(found, truth)), found
    instances = _read(instances_path)
    ious, people = match_people(cut(data, "each"), instances)
    return PictureResult(label, name, iou(found, truth), people, tuple(ious)), found


def match_people(pieces: list[Piece], instances: NDArray[np.uint8]) -> tuple[list[float], int]:
    """Match cut-outs to true people by their boxes, best overlap first.

    Returns:
        The mask IoU of each person found, and the number of people there are.
    """
    truths = [instances == number for number in np.unique(instances) if number]
    overlaps = sorted(
        (
            (box_iou(piece.box, mask_box(truth)), p, t)
            for p, piece in enumerate(pieces)
            for t, truth in enumerate(truths)
        ),
        reverse=True,
    )
    ious, used_pieces, used_truths = [], set(), set()
    for overlap, p, t in overlaps:
        if overlap < FOUND_IOU or p in used_pieces or t in used_truths:
            continue
        used_pieces.add(p)
        used_truths.add(t)
        ious.append(iou(placed([pieces[p]], instances.shape), truths[t]))
    return ious, len(truths)


def placed(pieces: list[Piece], shape: tuple[int, ...]) -> Mask:
    """Masks put back into the picture, together."""
    result = np.zeros(shape, bool)
    for piece in pieces:
        height, width = piece.mask.shape
        result[piece.top : piece.top + height, piece.left : piece.left + width] |= piece.mask
    return result


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union; 1 where both are empty."""
    union = np.count_nonzero(first | second)
    return 1.0 if union == 0 else float(np.count_nonzero(first & second) / union)


def box_iou(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0) * max(height, 0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return shared / (areas - shared)


def mask_box(mask: Mask) -> Box:
    """The box around a mask that is not empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def summarize(results: Sequence[PictureResult]) -> dict[str, Any]:
    """The figures of a folder; those of people are None where the truth has none."""
    unions = [result.union_iou for result in results]
    ious = [value for result in results for value in result.instance_ious]
    people = sum(result.people for result in results)
    return {
        "folder": results[0].folder,
        "pictures": len(results),
        "union_mean": float(np.mean(unions)),
        "union_median": float(np.median(unions)),
        "people": people,
        "found_share": len(ious) / people if people else None,
        "instance_mean": float(np.mean(ious)) if ious else None,
    }


# --------------------------------------------------------------------------------------------------- pictures


def picture_names(folder: Path, split: str, limit: int | None) -> list[str]:
    names = sorted(path.stem for path in (folder / "images").glob("*.jpg"))
    if split == "train-heldout":
        training: Any = importlib.import_module("export.nano.pictures")
        names = sorted(training.split_names(folder.parents[1], f"{folder.parent.name}/{folder.name}")[1])
    return names[:limit]


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("L"))


def sheet(data: Path, worst: Sequence[tuple[PictureResult, Mask]]) -> Image.Image:
    """The worst pictures, one below the other: the picture, the true mask in green, the found one in red."""
    tiles = [_tile(data, result, found) for result, found in worst]
    width = max(tile.shape[1] for tile in tiles)
    padded = [np.pad(tile, ((0, 0), (0, width - tile.shape[1]), (0, 0)), constant_values=255) for tile in tiles]
    return Image.fromarray(np.vstack(padded))


def _tile(data: Path, result: PictureResult, found: Mask) -> NDArray[np.uint8]:
    folder = data / result.folder
    picture = np.asarray(Image.open(folder / "images" / f"{result.name}.jpg").convert("RGB"))
    truth = _read(folder / "masks" / f"{result.name}.png") >= 128
    panels = [picture, _tinted(picture, truth, (40, 200, 80)), _tinted(picture, found, (230, 60, 60))]
    width = round(picture.shape[1] * PANEL_HEIGHT_PX / picture.shape[0])
    tile = np.hstack([cv2.resize(p, (width, PANEL_HEIGHT_PX), interpolation=cv2.INTER_AREA) for p in panels])
    caption = np.full((24, tile.shape[1], 3), 255, np.uint8)
    text = f"{result.folder}/{result.name}  IoU {result.union_iou:.3f}"
    cv2.putText(caption, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([caption, tile])


def _tinted(picture: NDArray[np.uint8], mask: Mask, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    strength = np.where(mask, 0.5, 0.0)[..., None]
    tinted: NDArray[np.uint8] = np.rint(picture * (1 - strength) + np.array(colour) * strength).astype(np.uint8)
    return tinted


# ---------------------------------------------------------------------------------------------------- command


def table(figures: Sequence[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = ["| pictures | number | union IoU mean | median | people | found | their mask IoU |", f"|---|{'--:|' * 6}"]
    for row in figures:
        cells = [row["folder"], row["pictures"], f"{row['union_mean']:.3f}", f"{row['union_median']:.3f}"]
        found = (
            [row["people"], f"{row['found_share']:.1%}", f"{row['instance_mean'] or 0:.3f}"] if row["people"] else "–––"
        )
        lines.append(f"| {' | '.join(map(str, [*cells, *found]))} |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, default=ROOT / ".." / "shared" / "people", help="photographs with masks")
    add("--split", choices=SPLITS, default="eval", help="which of them")
    add("--limit", type=int, help="only the first so many of each folder")
    add("--weights", type=Path, default=ROOT / "export" / "weights" / "nano", help="ONNX files")
    add("--output", type=Path, default=ROOT / "quality-output", help="where the results go")
    args = parser.parse_args(given)
    folders = [args.data / name for name in SPLITS[args.split]]
    missing = [str(folder) for folder in folders if not (folder / "images").is_dir()]
    if missing:
        print(f"Skipped: there are no photographs at {', '.join(missing)}. Name their folder with --data.")
        return 0
    if not (args.weights / "birefnet_trt.onnx").is_file():
        print(f"Skipped: there are no ONNX files in {args.weights}. Name their folder with --weights.")
        return 0
    cut = in_process(args.weights)
    measured: list[tuple[PictureResult, Mask]] = []
    figures = []
    for folder in folders:
        names = picture_names(folder, args.split, args.limit)
        say(f"{folder.name}: {len(names)} pictures")
        results = [measure(folder, name, cut) for name in names]
        measured += results
        figures.append(summarize([result for result, _ in results]))
    measured.sort(key=lambda pair: pair[0].union_iou)
    report = {
        "split": args.split,
        "models": args.weights.name,
        "folders": figures,
        "pictures": [asdict(result) for result, _ in measured],
    }
    publish(args.output, "quality", report, table(figures) + "\n")
    sheet(args.data, measured[:WORST]).save(args.output / "worst.png")
    print(f"The {WORST} worst pictures: {args.output / 'worst.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
