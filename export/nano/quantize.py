"""8-bit copies of the bundled networks for CPUs: `python -m export.nano.quantize --data ../shared`.

For each network of people writes `NAME.int8.onnx` beside `NAME.onnx` (ONNX Runtime's static quantization: weights int8
per output channel, maps uint8, ranges from training samples) and its line of `SHA256SUMS`; `training/int8.json` says
how far it is from float32 on held-out samples. Float32 stays the reference, and runs where the CPU lacks VNNI.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.nano.compose import SampleMaker
from export.nano.evaluate import iou
from export.nano.pictures import PictureBank, load_bank
from export.nano.scenes import SceneMaker
from export.onnx_tidy import store_half
from runtime.digest import sha256_of
from runtime.weights import INT8_SUFFIX as SUFFIX
from runtime.weights import NETWORKS

SAMPLES, HELD_OUT_SAMPLES = 32, 24
SEED, HELD_OUT_SEED = 5, 99
PICTURES = 24
"""Of each folder, for the samples: all of them would take minutes to prepare."""
ACTIVATIONS = ("Sigmoid", "Relu")
DETECTOR_KINDS = ("Conv", "Mul", "Concat", "MaxPool", "Resize", "Add", "Split", *ACTIVATIONS)
DETECTOR_KEPT = re.compile(r"^(/model)?/[^/]*$|/dfl/|^/model/model\.[012]/")
"""Nodes of a detector that stay float32: what comes before and after the network, the expected value of a box's sides,
and the first layers, which take a twentieth of the time and cause half of the error. So do all convolutions without an
activation behind them: they say boxes and scores."""
MATTING_KINDS = ("Conv",)
MATTING_KEPT = re.compile(r"^/model/(backbone|out)")
"""The same of the matting network: MobileNetV2's narrow layers take a third of the time and cause most of the error,
and what joins and enlarges maps is as quick in float32."""
SILU_FROM = -6.0
"""Inputs of x·sigmoid(x) are cut here, where it is -0.015: below lie half of the levels and nothing of the result."""
MAX_SCORE_ERROR, MIN_MASK_IOU, MIN_MATTE_IOU = 0.02, 0.95, 0.985
"""Bounds of a person's mean score and masks on held-out samples; beyond them the command fails."""

Picture = NDArray[np.uint8]


def samples(bank: PictureBank, session: onnxruntime.InferenceSession, held_out: bool) -> Iterator[Picture]:
    """Scenes for a detector, crops for a matting network: uint8 [1, S, S, 3] each."""
    side = session.get_inputs()[0].shape[1]
    draw = np.random.default_rng(HELD_OUT_SEED if held_out else SEED)
    if _is_detector(session.get_outputs()):
        parts = (bank.ccp, bank.coco, bank.backgrounds)
        maker = SceneMaker(*((bank.held_out_ccp, bank.held_out_coco, bank.held_out_backgrounds) if held_out else parts))
        make = lambda: maker.scene(draw).image  # noqa: E731
    else:
        crops = SampleMaker(bank, held_out)
        make = lambda: crops.sample(draw, side)[0]  # noqa: E731
    for _ in range(HELD_OUT_SAMPLES if held_out else SAMPLES):
        yield make()[None]


def _is_detector(outputs: Iterable[Any]) -> bool:
    """Whether a session's or a graph's outputs are a detector's."""
    return any(output.name == "boxes" for output in outputs)


def _kinds(graph: onnx.GraphProto) -> list[str]:
    return list(DETECTOR_KINDS if _is_detector(graph.output) else MATTING_KINDS)


def prepare(source: Path, target: Path) -> onnx.ModelProto:
    """Write a float32 file once more, with shapes and without what is constant."""
    quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
    return onnx.load(target)


def find_ranges(source: Path, pictures: Iterator[Picture]) -> TensorsData:
    """Lowest and highest values of the maps on pictures, by name."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        graph = prepare(source, prepared).graph
        calibrator = create_calibrator(prepared, _kinds(graph), f"{folder}/extended.onnx", CalibrationMethod.MinMax)
        calibrator.collect_data(_Reader(pictures))
        return cut_ranges(graph, calibrator.compute_data())


def quantize(source: Path, target: Path, ranges: TensorsData) -> None:
    """Write the 8-bit copy of a float32 file."""
    with tempfile.TemporaryDirectory() as folder:
        model = prepare(source, Path(folder) / "prepared.onnx")
    nodes, kinds = quantized_nodes(model.graph), _kinds(model.graph)
    types = QuantType.QInt8, QuantType.QUInt8
    quantizer = QDQQuantizer(model, True, False, *types, ranges, nodes, [], kinds, {"WeightSymmetric": True})
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    result = quantizer.model.model
    result.producer_name, result.producer_version = "", ""
    del result.metadata_props[:]
    onnx.save(result, target)
    if not _is_detector(model.graph.output):
        store_half(target)


class _Reader(CalibrationDataReader):
    def __init__(self, pictures: Iterator[Picture]) -> None:
        self._pictures = pictures

    def get_next(self) -> dict[str, Picture] | None:
        picture = next(self._pictures, None)
        return None if picture is None else {"images": picture}


def quantized_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes that become 8-bit."""
    if not _is_detector(graph.output):
        return [
            node.name for node in graph.node if node.op_type in MATTING_KINDS and not MATTING_KEPT.search(node.name)
        ]
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return [
        node.name
        for node in graph.node
        if node.op_type in DETECTOR_KINDS
        and node.name
        and not DETECTOR_KEPT.search(node.name)
        and types.get(node.output[0]) == onnx.TensorProto.FLOAT
        and (node.op_type != "Conv" or not set(readers[node.output[0]]).isdisjoint(ACTIVATIONS))
    ]


def cut_ranges(graph: onnx.GraphProto, found: TensorsData) -> TensorsData:
    """The ranges that were found, 0 in each; inputs of x·sigmoid(x) from `SILU_FROM` on."""
    inputs = {node.input[0] for node in graph.node if node.op_type == "Sigmoid"}
    ranges = {}
    for name, data in found.items():
        low, high = (float(np.min(data.range_value[0])), float(np.max(data.range_value[1])))
        low, high = min(low, 0.0), max(high, 0.1)
        if name in inputs:
            low = max(low, SILU_FROM)
        ranges[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return TensorsData(CalibrationMethod.MinMax, ranges)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def matte_figures(
    first: onnxruntime.InferenceSession, second: onnxruntime.InferenceSession, pictures: Iterator[Picture]
) -> dict[str, float]:
    """How far two matting networks are from each other: IoU at half alpha, mean and lowest, and mean error of alpha."""
    ious, errors = [], []
    for picture in pictures:
        one, other = (session.run(["alphas"], {"images": picture})[0][0] for session in (first, second))
        ious.append(iou(one >= 128, other >= 128))
        errors.append(float(np.abs(one.astype(np.float32) - other).mean()) / 255)
    return {"matte_iou": float(np.mean(ious)), "lowest_iou": min(ious), "alpha_error": float(np.mean(errors))}


def detector_figures(
    first: onnxruntime.InferenceSession, second: onnxruntime.InferenceSession, pictures: Iterator[Picture]
) -> dict[str, float]:
    """The same of two detectors, for each person of the first with a score of 0.35: of the second, the best candidate
    with a like box (IoU 0.7)."""
    errors, ious, lost = [], [], 0
    for picture in pictures:
        names = ("boxes", "scores", "classes", "coefficients", "prototypes")
        one, other = (
            {name: value[0] for name, value in zip(names, session.run(list(names), {"images": picture}), strict=True)}
            for session in (first, second)
        )
        theirs = np.flatnonzero(other["classes"] == 0)
        people: list[int] = []
        # Candidates come best first.
        for index in np.flatnonzero((one["classes"] == 0) & (one["scores"] >= 0.35)):
            if any(_box_iou(one["boxes"][index], one["boxes"][better]) >= 0.5 for better in people):
                continue
            people.append(int(index))
            same = [mine for mine in theirs if _box_iou(one["boxes"][index], other["boxes"][mine]) >= 0.7]
            if not same:
                lost += 1
                continue
            best = same[0]
            errors.append(abs(float(one["scores"][index] - other["scores"][best])))
            x1, y1, x2, y2 = (int(side) for side in np.clip(one["boxes"][index] / 4, 0, 160))
            masks = [
                np.tensordot(each["coefficients"][number], each["prototypes"][:, y1 : y2 + 1, x1 : x2 + 1], 1) > 0
                for each, number in ((one, index), (other, best))
            ]
            ious.append(iou(*masks))
    return {
        "people": len(errors) + lost,
        "lost": lost,
        "score_error": float(np.mean(errors)),
        "largest_score_error": max(errors),
        "mask_iou": float(np.mean(ious)),
    }


def _box_iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    sides = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None)
    areas = sum(float((box[2:] - box[:2]).prod()) for box in (first, second))
    return float(sides.prod() / (areas - sides.prod()))


def main(arguments: list[str] | None = None) -> int:
    """Write the files; exit status 1 where one is further from float32 than it may be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("export/weights/nano"))
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="folder with people/ and objects/")
    parser.add_argument("--network", choices=NETWORKS, action="append", help="only this one; may be repeated")
    options = parser.parse_args(arguments)
    record = options.folder / "training" / "int8.json"
    bank = load_bank(options.data / "people", PICTURES)
    figures: dict[str, Any] = json.loads(record.read_text()) if record.is_file() else {}
    for name in options.network or NETWORKS:
        source = options.folder / f"{name}.onnx"
        target, before = source.with_suffix(SUFFIX), open_session(source)
        ranges = find_ranges(source, samples(bank, before, held_out=False))
        quantize(source, target, ranges)
        # The detector for any size stays float32: streams flicker with 8-bit masks, also where nothing moves.
        compare = detector_figures if _is_detector(before.get_outputs()) else matte_figures
        found = compare(before, open_session(target), samples(bank, before, held_out=True))
        figures[source.stem] = {name: round(value, 4) for name, value in found.items()}
        print(target.name, figures[source.stem], flush=True)
    record.write_text(json.dumps(figures, indent=1) + "\n")
    files = sorted(options.folder.glob("*.onnx"))
    (options.folder / "SHA256SUMS").write_text("".join(f"{sha256_of(each)}  {each.name}\n" for each in files))
    return 0 if all(map(_close, figures.values())) else 1


def _close(found: dict[str, float]) -> bool:
    if "matte_iou" in found:
        return found["matte_iou"] >= MIN_MATTE_IOU
    return found["score_error"] <= MAX_SCORE_ERROR and found["mask_iou"] >= MIN_MASK_IOU


if __name__ == "__main__":
    sys.exit(main())
