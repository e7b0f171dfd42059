"""Half graphs of a network, by what stays float32, and how far each is from the float32 graph."""

from __future__ import annotations

import graphlib
import importlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from export.precision import KEEP, Part, prepared, staying_float32, to_half

DEFORMABLE = Path(__file__).with_name("deformable.onnx")
"""A trained network with deformable convolutions, as BiRefNet's are: `nano`'s matting network up to November 2026."""

THREADS = 2
PERSON_SCORE = 0.25
"""Candidates of at least this score are compared."""
SAME_BOX = 0.9
"""Boxes of the same candidate overlap at least this much."""

Pictures = NDArray[np.uint8]
"""RGB, uint8 [N, side, side, 3]."""


@dataclass(frozen=True)
class Choice:
    """What stays float32; `plain` takes ONNX Runtime's own converter instead."""

    name: str
    keep: tuple[Part, ...]
    plain: bool = False


DEFAULT = Choice(f"**the default**: {', '.join(KEEP)} float32", KEEP)


@dataclass(frozen=True)
class MatteRow:
    """How far alphas and logits are from float32's, over all pixels of all pictures."""

    choice: str
    mean: float
    """Alpha, of 255."""
    largest: float
    iou: float
    """Of the masks at half alpha."""
    logits: float
    """Root of the mean square of the logits' error."""
    coordinates_px: float
    """Root of the mean square of the sampled coordinates' errors, in pixels of the sampled map."""
    peak: float
    """Largest absolute value that was to fit into half precision (65504)."""


@dataclass(frozen=True)
class DetectorRow:
    """How far the candidates of at least `PERSON_SCORE` are from float32's."""

    choice: str
    candidates: int
    matched: int
    box_mean_px: float
    """Difference of a box's side, in letterboxed pixels."""
    box_p99_px: float
    box_px: float
    """The largest one."""
    score: float


# ------------------------------------------------------------------------------------------------------- graphs


def half_model(source: Path, choice: Choice) -> onnx.ModelProto:
    """The half graph of this choice."""
    if choice.plain:
        return by_onnxruntime(source, choice.keep)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "half.onnx"
        to_half(source, target, choice.keep)
        return onnx.load(target)


def by_onnxruntime(source: Path, keep: Sequence[Part]) -> onnx.ModelProto:
    """ONNX Runtime's converter with the same nodes kept, its doubled casts taken out and its nodes put in order."""
    float16: Any = importlib.import_module("onnxruntime.transformers.float16")
    model = prepared(source)
    for place, node in enumerate(model.graph.node):
        node.name = f"{place}"
    kept = [f"{place}" for place in staying_float32(model, keep)]
    model = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=kept, op_block_list=[])
    nodes = {node.output[0]: node for node in model.graph.node}
    producer = {name: node.output[0] for node in nodes.values() for name in node.output}
    order = graphlib.TopologicalSorter(
        {first: {producer[name] for name in node.input if name in producer} for first, node in nodes.items()}
    )
    ordered = [onnx.NodeProto.FromString(nodes[first].SerializeToString()) for first in order.static_order()]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    del model.graph.value_info[:]
    return model


def watched(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str], list[str]]:
    """The graph with its logits, grids and rounded tensors' peaks as further outputs; names of grids and of peaks.

    The logits come out as `logits`, the last Sigmoid's input.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    logits = next(node for node in reversed(graph.node) if node.op_type == "Sigmoid").input[0]
    grids = [node.input[1] for node in graph.node if node.op_type == "GridSample"]
    rounded = [node.input[0] for node in graph.node if node.op_type == "Cast" and node.input[0].endswith("/exact")]
    peaks = [f"{name}/peak" for name in rounded]
    for name, peak in zip(rounded, peaks, strict=True):
        graph.node.append(onnx.helper.make_node("Abs", [name], [f"{name}/size"]))
        graph.node.append(onnx.helper.make_node("ReduceMax", [f"{name}/size"], [peak], keepdims=0))
    graph.node.append(onnx.helper.make_node("Identity", [logits], ["logits"]))
    for name in dict.fromkeys(("logits", *grids, *peaks)):
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model, grids, peaks


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    # Fusing changes the order of summation; the rounding stays in any case.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Mattes:
    """What a graph made of the pictures, one after the other."""

    alphas: list[NDArray[np.float64]]
    logits: list[NDArray[np.float64]]
    grids: list[list[NDArray[np.float32]]]
    peak: float


def mattes(model: onnx.ModelProto, pictures: Pictures) -> Mattes:
    model, grids, peaks = watched(model)
    running = session(model)
    made, peak = Mattes([], [], [], 0.0), 0.0
    for picture in pictures:
        found = dict(
            zip(
                ("alphas", "logits", *grids, *peaks),
                running.run(["alphas", "logits", *grids, *peaks], {"images": picture[None]}),
                strict=True,
            )
        )
        made.alphas.append(found["alphas"].astype(np.float64))
        made.logits.append(found["logits"].astype(np.float64))
        made.grids.append([found[name] for name in grids])
        peak = max([peak, *(float(found[name]) for name in peaks)])
    return Mattes(made.alphas, made.logits, made.grids, peak)


def compare_mattes(choice: str, found: Mattes, wanted: Mattes, sampled_px: Sequence[int]) -> MatteRow:
    """Figures over all pictures; `sampled_px` is the side of each sampled map."""
    gap = np.abs(np.stack(found.alphas) - np.stack(wanted.alphas))
    first, second = np.stack(found.alphas) >= 128, np.stack(wanted.alphas) >= 128
    union = np.count_nonzero(first | second)
    logits = np.stack(found.logits) - np.stack(wanted.logits)
    coordinates = [
        float(np.mean((a.astype(np.float64) - b) ** 2)) * (side / 2) ** 2
        for ours, theirs in zip(found.grids, wanted.grids, strict=True)
        for a, b, side in zip(ours, theirs, sampled_px, strict=True)
    ]
    return MatteRow(
        choice=choice,
        mean=float(gap.mean()),
        largest=float(gap.max()),
        iou=float(np.count_nonzero(first & second) / union) if union else 1.0,
        logits=float(np.sqrt(np.mean(logits**2))),
        coordinates_px=float(np.sqrt(np.mean(coordinates))) if coordinates else 0.0,
        peak=found.peak,
    )


def sampled_sides(model: onnx.ModelProto) -> list[int]:
    """The side of the map that each GridSample reads, in pixels."""
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    sides = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in inferred
        if len(value.type.tensor_type.shape.dim) == 4
    }
    return [sides[node.input[0]] for node in model.graph.node if node.op_type == "GridSample"]


Found = list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]
"""Boxes [K, 4], scores [K] and classes [K] of each picture, those of at least `PERSON_SCORE`."""


def detections(model: onnx.ModelProto, pictures: Pictures) -> Found:
    running = session(model)
    found: Found = []
    for picture in pictures:
        boxes, scores, classes = running.run(["boxes", "scores", "classes"], {"images": picture[None]})
        found.append((boxes[0].astype(np.float64), scores[0].astype(np.float64), classes[0]))
    return found


def compare_detections(choice: str, found: Found, wanted: Found) -> DetectorRow:
    """Each candidate of float32 against the one of the same class that covers it best."""
    box_gaps: list[NDArray[np.float64]] = []
    score_gaps: list[float] = []
    candidates = 0
    for (boxes, scores, classes), (true_boxes, true_scores, true_classes) in zip(found, wanted, strict=True):
        for box, score, kind in zip(true_boxes, true_scores, true_classes, strict=True):
            if score < PERSON_SCORE:
                break
            candidates += 1
            gaps = np.where(classes == kind, np.abs(boxes - box).max(axis=1), np.inf)
            near = np.flatnonzero(gaps <= (1 - SAME_BOX) * (box[2:] - box[:2]).min())
            if len(near):
                # Neighbouring cells see the same person: the candidate of the nearest box and score is the same cell.
                best = near[np.argmin(gaps[near] + 100 * np.abs(scores[near] - score))]
                box_gaps.append(np.abs(boxes[best] - box))
                score_gaps.append(float(abs(scores[best] - score)))
    gaps = np.array(box_gaps) if box_gaps else np.full((1, 4), np.nan)
    return DetectorRow(
        choice=choice,
        candidates=candidates,
        matched=len(box_gaps),
        box_mean_px=float(gaps.mean()),
        box_p99_px=float(np.percentile(gaps, 99)),
        box_px=float(gaps.max()),
        score=max(score_gaps, default=np.nan),
    )
