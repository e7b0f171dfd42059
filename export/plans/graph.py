"""A graph as TensorRT takes it: the same computation, its uint8 picture cast before anything else is done with it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto

from export import ExportError
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
    cast_first(model)
    return Graph(model.SerializeToString(), signature, images.dims[1], opset, operators)


def cast_first(model: ModelProto) -> int:
    """Exchange a Transpose of the uint8 picture with the Casts that follow, in place; how many were exchanged.

    TensorRT takes uint8 at the edges of a network alone: nothing but a Cast may read such an input. Moving numbers and
    changing their type gives the same in either order.
    """
    graph = model.graph
    pictures = {each.name for each in graph.input if each.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    moved = 0
    for transpose in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in pictures]:
        readers = [node for node in graph.node if transpose.output[0] in node.input]
        if transpose.output[0] in {each.name for each in graph.output} or not readers:
            continue
        if any(node.op_type != "Cast" for node in readers):
            continue
        place = list(graph.node).index(transpose)
        pairs = [_exchanged(transpose, cast) for cast in readers]
        replaced = {node.output[0] for node in (transpose, *readers)}
        kept = [node for node in graph.node if node.output[0] not in replaced]
        nodes = [*kept[:place], *(node for pair in pairs for node in pair), *kept[place:]]
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        moved += len(pairs)
    return moved


def _exchanged(transpose: NodeProto, cast: NodeProto) -> tuple[NodeProto, NodeProto]:
    """The Cast of the picture, and the Transpose of what it gives, under the name that others read."""
    between = f"{cast.output[0]}/cast_first"
    first, second = NodeProto(), NodeProto()
    first.CopyFrom(cast)
    second.CopyFrom(transpose)
    first.input[0], first.output[0] = transpose.input[0], between
    second.input[0], second.output[0] = between, cast.output[0]
    second.name = f"{transpose.name} of {cast.name}"
    return first, second
