"""`python -m export verify-detector`: YOLOv8-seg held to Ultralytics' own predict on real pictures.

The same `.pt` file goes two ways. Here: read without running it, exported to ONNX, run in ONNX Runtime on the
pipeline's letterbox, read by the pipeline's suppression and masks. There: Ultralytics' predict, at 640 px without
rectangular batches, people only, with the pipeline's overlap threshold. Number, order, scores and boxes of the people
must be the same to rounding, and the masks the same pixels.
"""

import argparse
import functools
import importlib.metadata
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export import ExportError, positive
from export.detector_agreement import LOCK, Comparison, check_oracle, compare, detect, open_detector, predict
from export.plans.pictures import SAMPLES, find_pictures, import_pipeline


def export(weights: Path, target: Path) -> None:
    """Write the detector of an Ultralytics `.pt` file as `yolov8_seg`.

    Raises:
        ExportError: it is no readable checkpoint of YOLOv8-seg.
    """
    from export.graphs import DETECTOR_OUTPUTS, DETECTOR_SIDE_PX, DetectorGraph
    from export.networks.birefnet_weights import load_strict
    from export.networks.yolov8 import SCALES, YoloV8
    from export.onnx_export import export_graph
    from export.weights_io import WeightsError, load_ultralytics

    if not weights.is_file():
        raise ExportError(f"no file {weights}")
    state = load_ultralytics(weights)
    stem, classes = state.get("model.0.conv.weight"), state.get("model.22.cv3.0.2.weight")
    widths = {round(64 * width): scale for scale, (_, width, _) in SCALES.items()}
    scale = widths.get(len(stem)) if stem is not None else None
    if scale is None or classes is None:
        raise WeightsError(f"{weights.name}: no YOLOv8-seg of the sizes {', '.join(SCALES)}")
    network = YoloV8(scale, classes=len(classes))
    load_strict(network, state)
    # As export_detector does, but for the comparison with PyTorch: what follows holds it to more.
    export_graph(DetectorGraph(network).eval(), DETECTOR_SIDE_PX, DETECTOR_OUTPUTS, target)


def report(name: str, result: Comparison, min_confidence: float) -> str:
    """One line on a picture."""
    verdict = "ok" if result.agrees else "FAILED"
    if result.people != result.expected:
        return f"{name:24} {result.people} people, Ultralytics found {result.expected}  {verdict}"
    line = (
        f"{name:24} {result.people:3} people  boxes {result.boxes_px:.4f} px  scores {result.scores:.1e}  masks: "
        f"{result.square_pixels} of {result.square_area} px in the letterbox; in the picture {result.aside_pixels} of "
        f"{result.area} px aside, {result.edge_pixels} along edges  {verdict}"
    )
    if result.last_score >= min_confidence:
        line += f"; {result.cut_off} more score up to {result.last_score:.3f} and were cut off"
    return line


def summary(results: Sequence[Comparison], min_confidence: float) -> str:
    """What came out over all pictures."""
    like = [each for each in results if each.people == each.expected]
    people = sum(each.people for each in like)
    lines = [
        f"{len(results)} pictures, {people} people from a score of {min_confidence:g} on; "
        f"{sum(not each.agrees for each in results)} pictures differ",
        f"boxes: largest difference {max((each.boxes_px for each in like), default=0):.4f} px of the letterbox; "
        f"scores: {max((each.scores for each in like), default=0):.1e}",
        f"masks in the letterbox: {sum(each.square_pixels for each in like)} of "
        f"{sum(each.square_area for each in like)} px differ",
        f"masks in the picture: {sum(each.aside_pixels for each in like)} of {sum(each.area for each in like)} px are "
        f"more than a pixel aside, {sum(each.edge_pixels for each in like)} differ along edges",
        f"the graph's last candidate scores {max(each.last_score for each in results):.3f} at most; "
        f"{sum(each.cut_off for each in results)} people were cut off",
    ]
    return "\n".join(lines)


def read_pictures(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Every picture of a folder by its name, uint8 [H, W, 3] RGB, upright.

    Raises:
        PicturesMissing: there is none.
        ExportError: one cannot be read.
    """
    from cutaway.contract.errors import InputError
    from pipeline.decode import decode

    pictures = {}
    for path in find_pictures(folder, most=sys.maxsize):
        try:
            pictures[path.name] = decode(path.read_bytes()).rgb
        except InputError as error:
            raise ExportError(f"{path}: {error}") from None
    return pictures


def verify(
    weights: Path,
    onnx: Path,
    pictures: Mapping[str, NDArray[np.uint8]],
    min_confidence: float,
    threads: int,
    say: Callable[[str], None],
) -> bool:
    """Compare on every picture and say what comes out; whether all agree."""
    expected = predict(weights, list(pictures.values()), min_confidence, threads)
    detector = open_detector(onnx, threads)
    results = []
    for (name, picture), found in zip(pictures.items(), expected, strict=True):
        result = compare(detect(detector, picture, min_confidence), found)
        say(report(name, result, min_confidence))
        results.append(result)
    say(summary(results, min_confidence))
    return all(result.agrees for result in results)


def confidence(text: str) -> float:
    """A score from the command line."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"between 0 and 1, not {text}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare YOLOv8-seg, as the pipeline runs it, with Ultralytics' own predict on pictures: number, order, boxes, "
        "scores and masks of the people. Exit status 1 where one differs by more than rounding. Needs Ultralytics "
        f"(AGPL-3.0), which nothing else does: {LOCK} installs it."
    )
    parser.add_argument(
        "--weights", metavar="FILE", type=Path, required=True, help="a .pt file as Ultralytics releases and saves it"
    )
    parser.add_argument(
        "--onnx", metavar="FILE", type=Path, help="the yolov8_seg.onnx made of it (default: it is made anew)"
    )
    parser.add_argument("--pictures", metavar="DIR", type=Path, default=SAMPLES, help="a folder (default: samples)")
    parser.add_argument(
        "--min-confidence",
        metavar="X",
        type=confidence,
        default=0.25,
        help="compare people from this score on (default: %(default)g, Ultralytics' own)",
    )
    parser.add_argument(
        "--threads", metavar="N", type=positive, default=2, help="threads for either side (default: %(default)d)"
    )


def run(arguments: argparse.Namespace) -> int:
    check_oracle()
    import_pipeline()
    pictures = read_pictures(arguments.pictures)
    with tempfile.TemporaryDirectory(prefix="cutaway-detector-") as folder:
        onnx = arguments.onnx
        if onnx is None:
            onnx = Path(folder) / "yolov8_seg.onnx"
            export(arguments.weights, onnx)
        (package, *_) = importlib.metadata.packages_distributions()["ultralytics"]
        print(f"{package} {importlib.metadata.version(package)}", flush=True)
        say = functools.partial(print, flush=True)
        same = verify(arguments.weights, onnx, pictures, arguments.min_confidence, arguments.threads, say)
    return 0 if same else 1
