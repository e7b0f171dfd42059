"""Who is found: recall and false detections with the whole picture alone, and with slices and turned pictures.

    python -m benchmarks.finding                      # figures for docs/quality.md
    python -m benchmarks.finding --pictures 20        # a quick look

Photographs as they are, turned by 90°, 180° and 270°, and pasted at their own size into pictures of 24 megapixels; and
pictures without people. A person is found where a box and the true one have an IoU of 0.5 or more; every further box
is a false detection (of pictures in which passers-by are no part of the truth, some of these are people).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import head, load_before, say, sentence
from benchmarks.quality import FOUND_IOU, PIPELINE, ROOT, load_models

LARGE_WH = (6000, 4000)
MIN_CONFIDENCE = 0.35
Picture = NDArray[np.uint8]
Boxes = NDArray[np.float32]
Scene = tuple[Picture, Boxes]


@dataclass
class Count:
    """Sums over a set of pictures."""

    people: int = 0
    found: int = 0
    false: int = 0
    pictures: int = 0
    calls: int = 0

    def add(self, truth: Boxes, boxes: Boxes) -> None:
        from pipeline.detect import iou

        overlap = iou(truth, boxes) if len(truth) and len(boxes) else np.zeros((len(truth), len(boxes)))
        found = int((overlap.max(axis=1, initial=0) >= FOUND_IOU).sum())
        self.pictures += 1
        self.people += len(truth)
        self.found += found
        self.false += len(boxes) - int((overlap.max(axis=0, initial=0) >= FOUND_IOU).sum())


def pedestrians(data: Path) -> Iterator[Scene]:
    folder = data / "people" / "eval" / "pedestrians"
    for file in sorted((folder / "images").iterdir()):
        truth = cv2.imread(str(folder / "instances" / f"{file.stem}.png"), cv2.IMREAD_GRAYSCALE)
        boxes = [cv2.boundingRect((truth == index).astype(np.uint8)) for index in range(1, int(truth.max()) + 1)]
        yield _read(file), np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], np.float32)


def portraits(data: Path) -> Iterator[Scene]:
    """One box around each picture's mask: boxes of several people in it count as false."""
    folder = data / "people" / "eval" / "ccp"
    for file in sorted((folder / "images").iterdir()):
        x, y, w, h = cv2.boundingRect(cv2.imread(str(folder / "masks" / f"{file.stem}.png"), cv2.IMREAD_GRAYSCALE))
        yield _read(file), np.array([(x, y, x + w, y + h)], np.float32)


def empty(data: Path) -> Iterator[Scene]:
    for folder in (data / "objects" / "eval" / "images", data / "people" / "train2" / "backgrounds"):
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png")):
            yield _read(file), np.zeros((0, 4), np.float32)


def _read(file: Path) -> Picture:
    return np.asarray(cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB), np.uint8)


def turned(scenes: Iterator[Scene], quarter_turns: int) -> Iterator[Scene]:
    for picture, boxes in scenes:
        for _ in range(quarter_turns):  # counterclockwise
            width = picture.shape[1]
            picture = np.ascontiguousarray(np.rot90(picture))
            x1, y1, x2, y2 = boxes.T
            boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
        yield picture, boxes


def large(scenes: Iterator[Scene], data: Path) -> Iterator[Scene]:
    """Pictures at their own size somewhere in a background of 24 megapixels."""
    grounds = [picture for picture, _ in empty(data)][-60:]
    draw = np.random.default_rng(13)
    for index, (picture, boxes) in enumerate(scenes):
        canvas = np.asarray(
            cv2.resize(grounds[index % len(grounds)], LARGE_WH, interpolation=cv2.INTER_LINEAR), np.uint8
        )
        height, width = picture.shape[:2]
        x, y = int(draw.integers(0, LARGE_WH[0] - width)), int(draw.integers(0, LARGE_WH[1] - height))
        canvas[y : y + height, x : x + width] = picture
        yield canvas, boxes + np.array([x, y, x, y], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared", help="folder with people/ and objects/")
    parser.add_argument("--weights", type=Path, default=ROOT / "export" / "weights" / "nano", help="of nano")
    parser.add_argument("--pictures", type=int, default=1000, help="at most so many of each set")
    arguments = parser.parse_args()
    for folder in (PIPELINE, ROOT / "client"):
        sys.path.insert(0, str(folder))
    from pipeline.detect import read_detections
    from pipeline.letterbox import letterbox
    from pipeline.look import look

    detector = load_models(arguments.weights).detector
    data = arguments.data
    sets: dict[str, Callable[[], Iterator[Scene]]] = {
        "pedestrians": lambda: pedestrians(data),
        "street fashion": lambda: portraits(data),
        **{
            f"pedestrians turned by {90 * count}°": lambda count=count: turned(pedestrians(data), count)  # type: ignore[misc]
            for count in (1, 2, 3)
        },
        "pedestrians in 24 megapixels": lambda: large(pedestrians(data), data),
        "objects and scenes without people": lambda: empty(data),
    }
    print(sentence(head(("onnxruntime",), load_before())))
    print("\n| pictures | people | found before | found now | false before | false now | detector calls |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, scenes in sets.items():
        say(name)
        before, now = Count(), Count()

        def counted(images: Picture, into: Count = now) -> Any:
            into.calls += len(images)
            return detector(images)

        for picture, truth in islice(scenes(), arguments.pictures):
            square, placement = letterbox(picture)
            raw = {key: values[0] for key, values in detector(square[None]).items()}
            before.add(truth, read_detections(raw, placement, MIN_CONFIDENCE).boxes)
            now.add(truth, look(picture, counted, MIN_CONFIDENCE).detections.boxes)
        print(
            f"| {name} ({now.pictures}) | {now.people} | {before.found} | {now.found} | {before.false} | {now.false} "
            f"| {now.calls / max(1, now.pictures):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
