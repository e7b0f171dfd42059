"""How good the cut-outs are: the whole pipeline against photographs with known masks, and what the networks cost.

    python -m benchmarks.quality --data ../shared --before DIR    # DIR: older weights to compare with (make quality)
    python -m benchmarks.quality --split train-heldout            # what constants are tuned on

A picture in which nobody is found counts as an empty mask. IoU is at half alpha: 128 of 255 and more is the person.
Writes `quality.json` (with each picture, the worst first), `quality.md` and, with `--before`, `sheet.png`: 40 fixed
held-out pictures, each as it is, cut out before and now.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Literal

import cv2
import numpy as np
from cutaway.contract.errors import NoPersonDetected
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import head, load_before, publish, say, sentence
from benchmarks.pipeline import open_session
from runtime.devices import has_vnni
from runtime.sheet import draw_cutouts
from runtime.weights import WHOLE_MATTING, load_networks

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = ROOT / "model_repository" / "ensemble_pipeline" / "1"
THREADS = 2
OBJECTS, PEDESTRIANS = "objects/eval", "people/eval/pedestrians"
HEADS = ("people/train2/cc0_faces_pseudo", "people/train2/pd_officials_pseudo")
"""Of these, and of all training folders, only what was held out of training is measured."""
SPLITS = {
    "eval": ("people/eval/portrait_street", "people/eval/ccp", PEDESTRIANS, *HEADS, OBJECTS),
    "train-heldout": ("people/train/ccp", "people/train/coco128p", "people/train2/ccp", *HEADS),
}
WANTED = (
    ("portraits and streets, IoU mean", "portrait_street union_mean", 0.910),
    ("portraits and streets, IoU median", "portrait_street union_median", 0.945),
    ("street fashion, IoU mean", "ccp union_mean", 0.955),
    ("pedestrians, found", "pedestrians found_share", 0.98),
    ("pedestrians, each person's IoU mean", "pedestrians instance_mean", 0.835),
    ("selfies and busts, IoU mean", "heads union_mean", 0.945),
    ("selfies and busts, IoU median", "heads union_median", 0.968),
    ("selfies and busts, mean error of alpha", "heads alpha_error", -0.034),
    ("objects as whole pictures, IoU mean", "objects union_mean", 0.823),
    ("objects as whole pictures, IoU median", "objects union_median", 0.892),
    ("objects' network, CPU ms on one thread", "objects cpu_ms", -150),
    ("drawn soft edges, error in the unknown band, before = 1", "soft ratio", -0.6),
    ("CPU time of detector and matting network, before = 1", "cpu ratio", -0.6),
    ("largest file, MB", "files largest_mb", -15),
)
"""What is measured, and at least how much is wanted; at most, where it is negative."""
SOFT_PICTURES, FIRST_SHAPE = 24, 1000
"""Shapes from this number on were never looked at to choose anything."""
SHEET = (("train/ccp", 6), ("train2/ccp", 8), ("train2/cc0_faces_pseudo", 16), ("train2/pd_officials_pseudo", 4))
SHEET_OBJECTS = 6
WARM_UP_ROUNDS, ROUNDS = 2, 15
FOUND_IOU = 0.5  # of a detection box and the true box

Mask = NDArray[np.bool_]
Alpha = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Piece:
    """One cut-out as far as it is measured: a person's box, and the alpha (h, w) uint8 at a corner of the picture."""

    box: Box
    left: int
    top: int
    alpha: Alpha


Subject = Literal["people", "each", "all"]
Cutter = Callable[[bytes, Subject], list[Piece]]  # encoded file, subject → cut-outs


@dataclass(frozen=True)
class PictureResult:
    """What was measured on one picture; `people` is 0 where the truth has no instances."""

    folder: str
    name: str
    union_iou: float
    alpha_error: float
    people: int = 0
    instance_ious: tuple[float, ...] = ()


@functools.cache
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
    """The networks that a server would take of a folder, in ONNX Runtime on the CPU, for `pipeline.run`."""
    from pipeline.run import Models

    networks = load_networks(weights, int8=has_vnni())
    detector = open_session(networks["yolov8_seg"].path, THREADS)
    names = [output.name for output in detector.get_outputs()]

    def models(matting: str, whole: Any = None) -> Any:
        matter = open_session(networks[matting].path, THREADS)
        return Models(
            lambda images: dict(zip(names, detector.run(None, {"images": images}), strict=True)),
            lambda images: matter.run(["alphas"], {"images": images})[0],
            matter.get_inputs()[0].shape[1],
            {"profile": weights.name},
            whole=whole,
        )

    return models("birefnet_trt", models(WHOLE_MATTING) if WHOLE_MATTING in networks else None)


def _piece(box: Sequence[float], frame: Sequence[int], image: bytes) -> Piece:
    x1, y1, x2, y2 = (float(side) for side in box)
    return Piece((x1, y1, x2, y2), frame[0], frame[1], np.asarray(Image.open(io.BytesIO(image))))


def measure(data: Path, folder: str, name: str, cut: Cutter) -> PictureResult:
    """One picture's figures."""
    place = data / folder
    picture = (place / "images" / f"{name}.jpg").read_bytes()
    truth = _read(place / "masks" / f"{name}.png")
    found = placed(cut(picture, "all" if folder == OBJECTS else "people"), truth.shape)
    figures = iou(found >= 128, truth >= 128), error(found, truth)
    instances_path = place / "instances" / f"{name}.png"
    if not instances_path.exists():
        return PictureResult(folder, name, *figures)
    ious, people = match_people(cut(picture, "each"), _read(instances_path))
    return PictureResult(folder, name, *figures, people, tuple(ious))


def _measure(job: tuple[Path, Path, str, str]) -> PictureResult:
    weights, data, folder, name = job
    return measure(data, folder, name, in_process(weights))


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
        ious.append(iou(placed([pieces[p]], instances.shape) >= 128, truths[t]))
    return ious, len(truths)


def placed(pieces: list[Piece], shape: tuple[int, ...]) -> Alpha:
    """Alphas put back into the picture, together."""
    result = np.zeros(shape, np.uint8)
    for piece in pieces:
        height, width = piece.alpha.shape
        part = result[piece.top : piece.top + height, piece.left : piece.left + width]
        np.maximum(part, piece.alpha, out=part)
    return result


def error(found: Alpha, truth: Alpha, where: Mask | EllipsisType = ...) -> float:
    """Mean absolute error of alpha, 0 to 1."""
    return float(np.abs(found.astype(np.float32) - truth)[where].mean() / 255)


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
        "alpha_error": float(np.mean([result.alpha_error for result in results])),
        "people": people,
        "found_share": len(ious) / people if people else None,
        "instance_mean": float(np.mean(ious)) if ious else None,
    }


def soft_error(data: Path, cut: Cutter) -> float:
    """Mean error of alpha at edges that were drawn onto held-out heads, in the band where it is unknown."""
    truth: Any = importlib.import_module("export.nano.soft_truth")
    errors = []
    for image, alpha in truth.drawn_pictures(data / "people", SOFT_PICTURES, FIRST_SHAPE):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        found = placed(cut(buffer.getvalue(), "people"), alpha.shape)
        errors.append(error(found, alpha, truth.unknown_band(alpha)))
    return float(np.mean(errors))


def cpu_ms(paths: Sequence[Sequence[Path]], threads: int = THREADS) -> list[float]:
    """Median CPU time of running some networks once each, for several sets of them that take turns.

    As the server has it, threads that wait do not spin: that would count as CPU time.
    """
    sets = [[open_session(path, threads, spinning=False) for path in each] for each in paths]
    spent: list[list[float]] = [[] for _ in sets]
    for number in range(-WARM_UP_ROUNDS, ROUNDS):
        for sessions, times in zip(sets, spent, strict=True):
            took = 0.0
            for session in sessions:
                picture = np.random.default_rng(0).integers(0, 256, (1, *session.get_inputs()[0].shape[1:]), np.uint8)
                begun = time.process_time()
                session.run(None, {"images": picture})
                took += time.process_time() - begun
            times += [took * 1000] if number >= 0 else []
    return [float(np.median(times)) for times in spent]


def picture_names(data: Path, folder: str, limit: int | None) -> list[str]:
    if "/train" in folder:
        return held_out(data, folder)[:limit]
    return sorted(path.stem for path in (data / folder / "images").glob("*.jpg"))[:limit]


def held_out(data: Path, folder: str) -> list[str]:
    """Names of a training folder's pictures that training leaves out."""
    training: Any = importlib.import_module("export.nano.pictures")
    return sorted(training.split_names(data / "people", folder.removeprefix("people/"))[1])


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("L"))


def pairs(data: Path, before: Cutter, now: Cutter, output: Path) -> None:
    """Draw fixed held-out pictures, each as it is, cut out before and now."""
    chosen = [(f"people/{part}", name) for part, count in SHEET for name in held_out(data, f"people/{part}")[:count]]
    things = picture_names(data, OBJECTS, None)
    rows = []
    for folder, name in chosen + [(OBJECTS, name) for name in things[:: len(things) // SHEET_OBJECTS][:SHEET_OBJECTS]]:
        file = data / folder / "images" / f"{name}.jpg"
        panels = [Image.open(file).convert("RGB")]
        for cut in (before, now):
            found = placed(cut(file.read_bytes(), "all" if folder == OBJECTS else "people"), panels[0].size[::-1])
            panels.append(Image.merge("RGBA", [*panels[0].split(), Image.fromarray(found)]))
        rows.append((f"{folder}/{name}: as it is, before, now", panels))
    draw_cutouts(rows, output / "sheet.png")


def verdicts(figures: Mapping[str, float]) -> str:
    """What is wanted and whether it is met, as a Markdown table; without what was not measured."""
    lines = ["| figure | measured | wanted | |", "|---|--:|--:|---|"]
    for what, key, bound in WANTED:
        if key in figures:
            value, least = figures[key], bound > 0
            met = value >= bound if least else value <= -bound
            wanted = f"{'≥' if least else '≤'} {abs(bound):g}"
            lines.append(f"| {what} | {value:.4g} | {wanted} | {'met' if met else '**missed**'} |")
    return "\n".join(lines)


def table(figures: Sequence[dict[str, Any]]) -> str:
    """The figures by folder as a Markdown table."""
    lines = [
        "| pictures | number | union IoU mean | median | error of alpha | people | found | their mask IoU |",
        f"|---|{'--:|' * 7}",
    ]
    for row in figures:
        cells = [row["folder"], row["pictures"]]
        cells += [
            f"{row[key]:.{digits}f}" for key, digits in (("union_mean", 3), ("union_median", 3), ("alpha_error", 4))
        ]
        found = (
            [row["people"], f"{row['found_share']:.1%}", f"{row['instance_mean'] or 0:.3f}"] if row["people"] else "–––"
        )
        lines.append(f"| {' | '.join(map(str, [*cells, *found]))} |")
    return "\n".join(lines)


def compared(data: Path, weights: Path, before: Path, output: Path) -> dict[str, float]:
    """The figures that have a before, and the sheet of pairs."""
    earlier, cut = in_process(before), in_process(weights)
    served = load_networks(weights, int8=has_vnni())
    sets = (load_networks(before), served, load_networks(weights))
    was, now, float32 = cpu_ms([[each[name].path for name in ("yolov8_seg", "birefnet_trt")] for each in sets])
    figures = {"cpu ratio": now / was, "cpu before_ms": was, "cpu now_ms": now, "cpu float32_ms": float32}
    print(f"In float32, as on CPUs without VNNI, the networks take {float32 / was:.2f} of the time before")
    if WHOLE_MATTING in served:
        figures["objects cpu_ms"] = cpu_ms([[served[WHOLE_MATTING].path]], threads=1)[0]
    figures["soft before"], figures["soft now"] = soft_error(data, earlier), soft_error(data, cut)
    figures["soft ratio"] = figures["soft now"] / figures["soft before"]
    pairs(data, earlier, cut, output)
    print(f"Before and now: {output / 'sheet.png'}")
    return figures


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, default=ROOT / ".." / "shared", help="folder with people/ and objects/")
    add("--split", choices=SPLITS, default="eval", help="which photographs")
    add("--limit", type=int, help="only the first so many of each folder")
    add("--weights", type=Path, default=ROOT / "export" / "weights" / "nano", help="folder of ONNX files")
    add("--before", type=Path, help="folder of older ONNX files to compare with")
    add("--jobs", type=int, default=1, help="processes that share the pictures")
    add("--output", type=Path, default=ROOT / "quality-output", help="where the results go")
    args = parser.parse_args(given)
    load = load_before()
    missing = [folder for folder in SPLITS[args.split] if not (args.data / folder / "images").is_dir()]
    if missing:
        print(f"Skipped: there are no photographs at {args.data}: {', '.join(missing)}. Name their folder with --data.")
        return 0
    jobs = [
        (args.weights, args.data, folder, name)
        for folder in SPLITS[args.split]
        for name in picture_names(args.data, folder, args.limit)
    ]
    say(f"{len(jobs)} pictures")
    args.output.mkdir(parents=True, exist_ok=True)
    figures = {"files largest_mb": max(path.stat().st_size for path in args.weights.glob("*.onnx")) / 1e6}
    with ProcessPoolExecutor(args.jobs) as pool:
        results = pool.map(_measure, jobs)
        if args.before is not None:
            figures |= compared(args.data, args.weights, args.before, args.output)
        measured = list(results)
    folders = [summarize([each for each in measured if each.folder == folder]) for folder in SPLITS[args.split]]
    heads = summarize([each for each in measured if each.folder in HEADS])
    for row in (*folders, {**heads, "folder": "heads"}):
        name = "objects" if row["folder"] == OBJECTS else row["folder"].rpartition("/")[2]
        figures |= {f"{name} {key}": value for key, value in row.items() if isinstance(value, float)}
    measured.sort(key=lambda result: result.union_iou)
    machine = head(("onnxruntime",), load)
    report = {**machine, "split": args.split, "figures": figures, "folders": folders}
    report["pictures"] = [asdict(result) for result in measured]
    wanted = verdicts(figures) if args.split == "eval" else ""
    publish(args.output, "quality", report, f"{sentence(machine)}\n\n{wanted}\n\n{table(folders)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
