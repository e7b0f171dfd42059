"""What half precision costs, by what stays float32: alphas and boxes against the float32 graph's.

    python -m benchmarks.precision                                      # the bundled nano networks
    python -m benchmarks.precision --reference ../shared/birefnet_reference --side 256
    python -m benchmarks.precision --model models/general/birefnet_trt.onnx --pictures 2

Half graphs are emulated (`export.half_emulation`): every half tensor is rounded to half precision, sums are float32.
A GPU's order of summation is not seen. "only … half" leaves all else float32, so that one part's share is seen alone.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from benchmarks.half_graphs import DetectorRow, MatteRow, Pictures, measure_detector, measure_matte
from benchmarks.machine import load_before, machine, publish, sentence, versions
from export.check_pictures import middle_square

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "export" / "weights" / "nano"
SAMPLES = ROOT / "samples"
PEOPLE = ROOT / ".." / "shared" / "people" / "eval"

# ----------------------------------------------------------------------------------------------------- pictures


def find_pictures(number: int) -> list[Path]:
    """The samples, then photographs from all folders of the evaluation set, where it lies beside the checkout."""
    found = sorted(SAMPLES.glob("*.jpg"))
    folders = [sorted((folder / "images").glob("*.jpg")) for folder in sorted(PEOPLE.glob("*")) if folder.is_dir()]
    for place in range(number):
        for folder in folders:
            if folder:
                found.append(folder[place * len(folder) // max(number, 1) % len(folder)])
    return list(dict.fromkeys(found))[:number]


def squares(paths: Sequence[Path], side_px: int) -> Pictures:
    """The middle square of each picture, at this side, as the matting network is fed."""
    return np.stack([middle_square(Image.open(path).convert("RGB"), side_px) for path in paths])


def side_of(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return int(model.graph.input[0].type.tensor_type.shape.dim[1].dim_value)


# ------------------------------------------------------------------------------------------------------ command


def reference_matte(folder: Path, side_px: int, target: Path) -> None:
    """BiRefNet with the Swin-T encoder and the weights of `export verify`'s rule: random, but no offset is zero."""
    verify: Any = importlib.import_module("export.verify")
    exporter: Any = importlib.import_module("export.onnx_export")
    network = verify.build("lite", verify.read_reference(folder, "lite"))
    exporter.export_birefnet(network, side_px, target)


def matte_table(rows: Sequence[MatteRow]) -> str:
    lines = [
        "| choice | alpha error, mean of 255 | largest | IoU at half | logits, RMS | coordinates, RMS px | peak |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        peak = f"{row.peak:.0f}" if row.peak else "–"
        lines.append(
            f"| {row.choice} | {row.mean:.3f} | {row.largest:.0f} | {row.iou:.4f} | {row.logits:.4f} | "
            f"{row.coordinates_px:.4f} | {peak} |"
        )
    return "\n".join(lines)


def detector_table(rows: Sequence[DetectorRow]) -> str:
    lines = [
        "| choice | candidates | found again | box, mean px | 99 of 100 below | largest | score, largest |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.choice} | {row.candidates} | {row.matched} | {row.box_mean_px:.3f} | {row.box_p99_px:.3f} | "
            f"{row.box_px:.3f} | {row.score:.4f} |"
        )
    return "\n".join(lines)


def say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, action="append", help="a float32 birefnet_trt.onnx; may be repeated")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="also Swin-T with the weights of this folder's rule"
    )
    parser.add_argument(
        "--side", type=int, default=256, help="the reference network's input, px (default: %(default)s)"
    )
    parser.add_argument("--pictures", type=int, default=14, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-output", help="where the report goes")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    load, warning = load_before()
    if warning:
        say(warning)
    paths = find_pictures(args.pictures)
    sections: list[tuple[str, list[MatteRow]]] = []
    detector: list[DetectorRow] = []
    for model in args.model or ([] if args.reference else [NANO / "birefnet_trt.onnx"]):
        side_px = side_of(model)
        sections.append((f"{model.parent.name}, {side_px} px", measure_matte(model, squares(paths, side_px), say)))
        detector_file = model.with_name("yolov8_seg.onnx")
        if detector_file.exists() and not detector:
            detector = measure_detector(detector_file, squares(paths, side_of(detector_file)))
    if args.reference:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "birefnet_trt.onnx"
            say(f"exporting Swin-T at {args.side} px")
            reference_matte(args.reference, args.side, path)
            rows = measure_matte(path, squares(paths, args.side), say)
        sections.append((f"Swin-T with reference weights (random), {args.side} px", rows))
    report: dict[str, Any] = {
        "machine": machine(load),
        "versions": versions(("numpy", "onnx", "onnxruntime")),
        "pictures": [path.name for path in paths],
        "mattes": {name: [asdict(row) for row in rows] for name, rows in sections},
        "detector": [asdict(row) for row in detector],
    }
    text = "\n\n".join(f"### {name}, {len(paths)} pictures\n\n{matte_table(rows)}" for name, rows in sections)
    if detector:
        text += f"\n\n### the detector, {len(paths)} pictures\n\n{detector_table(detector)}"
    publish(args.output, "precision", report, f"{text}\n\n{sentence(report)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
