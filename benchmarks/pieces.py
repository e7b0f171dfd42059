"""Parts that are the project's own where a library could stand, beside those libraries (`python -m benchmarks.pieces`).

The PNG writer against OpenCV's and Pillow's on transparent cut-outs of a megapixel; the foreground's colour at soft
edges against pymatting's multi-level estimate where the truth is known. Prints two tables in Markdown; milliseconds are
the best of several runs, so that other work on the machine shows little.
"""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RUNS = 7
PIXELS = 1_000_000

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

SCENES: dict[str, tuple[Colour, Colour]] = {
    "dark hair on light ground": ((60, 40, 30), (235, 235, 240)),
    "light hair on dark ground": ((245, 245, 240), (20, 20, 25)),
    "skin on green": ((220, 180, 150), (30, 190, 40)),
}
"""Foreground and background colours, of which textures are made."""


def texture(rng: np.random.Generator, size: tuple[int, int], colour: Colour, amount: float) -> NDArray[np.float64]:
    """(height, width, 3) float64: a colour with noise of three sizes."""
    height, width = size
    noise = np.zeros((height, width, 3))
    for cell in (4, 16, 64):
        coarse = rng.normal(0, 1, (height // cell, width // cell, 3))
        noise += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(np.array(colour) + amount * noise, 0, 255))


def head_with_hair(size: tuple[int, int] = (420, 340)) -> Picture:
    """Alpha (height, width) uint8 of a solid head and strands of one to three pixels around it."""
    rng = np.random.default_rng(4)
    height, width = size[0] * 2, size[1] * 2
    alpha = np.zeros((height, width), np.uint8)
    cv2.ellipse(alpha, (width // 2, height // 2), (width // 4, height // 3), 0, 0, 360, (255,), -1)
    for _ in range(250):
        turn = rng.uniform(0, 2 * np.pi)
        strand = [np.array([width / 2 + width / 4 * np.cos(turn), height / 2 + height / 3 * np.sin(turn)])]
        for _ in range(10):
            turn += rng.normal(0, 0.2)
            strand.append(strand[-1] + 5 * np.array([np.cos(turn), np.sin(turn)]))
        thickness, opacity = int(rng.integers(1, 4)), int(rng.integers(120, 256))
        cv2.polylines(alpha, [np.array(strand, np.int32)], False, (opacity,), thickness, cv2.LINE_AA)
    small = cv2.resize(cv2.GaussianBlur(alpha, (0, 0), 1.5), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def composed(pair: tuple[Colour, Colour]) -> tuple[Picture, Picture, Picture]:
    """A picture (h, w, 3) made of a foreground, a background and an alpha; that alpha (h, w); that foreground."""
    rng = np.random.default_rng(5)
    alpha = head_with_hair()
    size = (alpha.shape[0], alpha.shape[1])
    foreground = np.rint(texture(rng, size, pair[0], 8))
    background = texture(rng, size, pair[1], 20)
    share = alpha[..., None] / 255
    picture = np.rint(share * foreground + (1 - share) * background)
    return picture.astype(np.uint8), alpha, foreground.astype(np.uint8)


def edge_error(colours: NDArray[Any], truth: Picture, alpha: Picture) -> float:
    """Mean absolute difference at soft edges, of 255, weighted by alpha: as it shows on another background."""
    soft = (alpha > 0) & (alpha < 255)
    difference = np.abs(colours.astype(float) - truth).mean(axis=2)
    return float(np.average(difference[soft], weights=alpha[soft]))


def best_ms(work: Callable[..., Any], *arguments: Any) -> float:
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work(*arguments)
        taken.append(time.perf_counter() - started)
    return 1000 * min(taken)


def pymatting_estimate(picture: Picture, alpha: Picture) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pymatting import estimate_foreground_ml

        return np.asarray(estimate_foreground_ml(picture / 255.0, alpha / 255.0) * 255)


def colour_table(clean_colours: Callable[[Picture, Picture, bool], Picture]) -> list[str]:
    lines = ["| error at soft edges, of 255 | as in the picture | Cutaway | pymatting |", "|---|--:|--:|--:|"]
    times: tuple[float, float] = (0.0, 0.0)
    for name, pair in SCENES.items():
        picture, alpha, truth = composed(pair)
        ours, theirs = clean_colours(picture, alpha, True), pymatting_estimate(picture, alpha)
        errors = (edge_error(result, truth, alpha) for result in (picture, ours, theirs))
        lines.append(f"| {name} | " + " | ".join(f"{error:.1f}" for error in errors) + " |")
        times = (best_ms(clean_colours, picture, alpha, True), best_ms(pymatting_estimate, picture, alpha))
    size = "×".join(str(side) for side in composed(SCENES["skin on green"])[1].shape)
    lines.append(f"| ms for {size} pixels | | {times[0]:.1f} | {times[1]:.1f} |")
    return lines


def cutouts(weights: Path) -> dict[str, Picture]:
    """The sample pictures, brought to a megapixel, cut out: RGBA."""
    from cutaway.contract.options import parse_options
    from pipeline.run import run

    from benchmarks.quality import load_models

    models = load_models(weights)
    results = {}
    for path in sorted((ROOT / "samples").glob("*.jpg")):
        sample = Image.open(path).convert("RGB")
        scale = (PIXELS / (sample.width * sample.height)) ** 0.5
        file = io.BytesIO()
        sample.resize((round(sample.width * scale), round(sample.height * scale)), Image.Resampling.LANCZOS).save(
            file, "JPEG", quality=90
        )
        answer = run(file.getvalue(), parse_options({}), models)
        results[path.stem] = np.array(Image.open(io.BytesIO(answer.images[0])))
    return results


def png_table(png: Callable[[Picture], bytes], pictures: dict[str, Picture]) -> list[str]:
    def opencv(pixels: Picture) -> bytes:
        bgra = cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA)
        return bytes(cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])

    def pillow(pixels: Picture) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=6)
        return file.getvalue()

    writers = {"Cutaway": png, "OpenCV, level 1": opencv, "Pillow, level 6": pillow}
    lines = ["| cut-out | " + " | ".join(writers) + " |", "|---|" + "--:|" * len(writers)]
    for name, pixels in pictures.items():
        cells = [f"{best_ms(write, pixels):.1f} ms, {len(write(pixels)) / 1000:,.0f} kB" for write in writers.values()]
        lines.append(f"| {name}, {pixels.shape[1]}×{pixels.shape[0]} | " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    for folder in (ROOT / "model_repository" / "ensemble_pipeline" / "1", ROOT / "client"):
        sys.path.insert(0, str(folder))
    from pipeline.encode import png
    from pipeline.foreground import clean_colours
    from pipeline.pixels import Pixels

    cv2.setNumThreads(2)
    networks = ROOT / "export" / "weights" / "nano"
    print("\n".join(png_table(lambda array: png(Pixels.of(array)), cutouts(networks))))
    print()
    print("\n".join(colour_table(lambda *given: clean_colours(*given).array())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
