"""A graph as TensorRT takes it: the same computation, its uint8 picture cast before anything else is done with it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx

from export import ExportError
from export.precision import cast_pictures_first
from runtime.onnx_file import Signature, read_signature

GRID_SAMPLE_OPSET = 19
"""The last opset whose GridSample says "bilinear". TensorRT does not know the later "linear", and reads it as nearest
without a word."""
INPUT = "images"


class GraphRefused(ExportError, ValueError):
    """TensorRT would not take the graph, or would get it wrong.

    birefnet_trt.onnx: GridSample of opset 20, which TensorRT reads as nearest; export it at opset 18
    """


@dataclass(frozen=True)
class Graph:
    """What a plan is built from.

    Attributes:
        model: the serialized graph.
        signature: its inputs and outputs, the batch open.
        side_px: side of the square picture.
        opset: of the standard operators.
        operators: how many nodes there are of each.
    """

    model: bytes
    signature: Signature
    side_px: int
    opset: int
    operators: Counter[str]


def read_graph(path: Path) -> Graph:
    """The graph at `path`, ready for TensorRT.

    Raises:
        GraphRefused: see there.
    """
    try:
        signature = read_signature(path)
        model = onnx.load(path)
    except (OSError, ValueError) as error:
        raise GraphRefused(f"{path} cannot be read: {error}") from None
    images = signature.inputs.get(INPUT)
    if images is None or images.dtype != "UINT8" or len(images.dims) != 4 or images.dims[0] != -1:
        raise GraphRefused(f"{path}: no input {INPUT}, uint8 [batch, side, side, 3]")
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    operators = Counter(node.op_type for node in model.graph.node)
    if operators["GridSample"] and opset > GRID_SAMPLE_OPSET:
        raise GraphRefused(
            f"{path}: GridSample of opset {opset}, which TensorRT reads as nearest; export it at opset 18"
        )
    cast_pictures_first(model)
    return Graph(model.SerializeToString(), signature, images.dims[1], opset, operators)
