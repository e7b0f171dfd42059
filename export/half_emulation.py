"""What half precision does to a graph's results, computed on a CPU.

ONNX Runtime's CPU provider computes the half nodes of a graph in float32 and does not round in between, at whatever
level of optimisation, so running the half graph there says nothing. Casts that are written into a float32 graph it
does keep. `emulate` writes them: a float32 graph that rounds the result of every half node to half precision.

That is a GPU's arithmetic as far as tensors go: halves in, sums in float32, halves out. It cannot tell the order of
summation, kernels that sum in half precision, or kernels that keep float32 between two nodes they fuse, which round
less.
"""

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export import precision

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16

EXACT = frozenset(
    "Concat DepthToSpace Expand Flatten Gather GatherElements Identity MaxPool Neg Pad ReduceMax Relu Reshape Slice "  # noqa: SIM905
    "SpaceToDepth Split Squeeze TopK Transpose Unsqueeze Where".split()
)
"""Operators that only move or choose values: what goes in as a half comes out as one."""


def emulate(model: ModelProto, stepwise: bool = False) -> ModelProto:
    """A float32 graph that gives the results of a strongly typed half one.

    Args:
        model: as `export.precision.to_half` writes it; stays as it is.
        stepwise: take half-precision LayerNormalization and Softmax apart into steps that each round, for kernels that
            compute them in half precision inside. Otherwise only their results round.
    """
    emulation = ModelProto()
    emulation.CopyFrom(model)
    if stepwise:
        _take_apart(emulation)
    kinds = precision.tensor_types(emulation)
    graph = emulation.graph
    for tensor in graph.initializer:
        if tensor.data_type == HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.extend(_rounded(node, kinds))
    _replace_nodes(graph, nodes)
    return emulation


def _rounded(node: NodeProto, kinds: dict[str, int]) -> list[NodeProto]:
    """The node in float32, and what rounds its half results."""
    if node.op_type == "Cast" and kinds[node.output[0]] in (FLOAT, HALF):
        next(each for each in node.attribute if each.name == "to").i = FLOAT
        if kinds[node.output[0]] == FLOAT or kinds[node.input[0]] not in (FLOAT, HALF):
            return [node]
    after = []
    for slot, name in enumerate(node.output):
        if name and kinds[name] == HALF and node.op_type not in EXACT:
            node.output[slot] = f"{name}/exact"
            after.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/16"], to=HALF))
            after.append(helper.make_node("Cast", [f"{name}/16"], [name], to=FLOAT))
    return [node, *after]


def _take_apart(model: ModelProto) -> None:
    """Write LayerNormalization and Softmax of half tensors as elementary steps."""
    kinds = precision.tensor_types(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type in STEPS and kinds[node.output[0]] == HALF:
            nodes.extend(STEPS[node.op_type](model, node))
        else:
            nodes.append(node)
    _replace_nodes(model.graph, nodes)


def _softmax(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    """exp(x - max) / sum, each step in half precision."""
    (x,), (y,) = node.input, node.output
    axes = _constant(model, f"{y}/axes", np.array([_attributes(node).get("axis", -1)], np.int64))
    return [
        helper.make_node("ReduceMax", [x, axes], [f"{y}/max"]),
        helper.make_node("Sub", [x, f"{y}/max"], [f"{y}/shifted"]),
        helper.make_node("Exp", [f"{y}/shifted"], [f"{y}/exp"]),
        helper.make_node("ReduceSum", [f"{y}/exp", axes], [f"{y}/sum"]),
        helper.make_node("Div", [f"{y}/exp", f"{y}/sum"], [y]),
    ]


def _layer_norm(model: ModelProto, node: NodeProto) -> list[NodeProto]:
    """(x - mean) / sqrt(variance + eps) · scale + bias, each step in half precision."""
    (x, scale, *bias), y = node.input, node.output[0]
    axes = _constant(model, f"{y}/axes", np.array([_attributes(node).get("axis", -1)], np.int64))
    epsilon = _constant(model, f"{y}/epsilon", np.array(_attributes(node).get("epsilon", 1e-5), np.float16))
    steps = [
        helper.make_node("ReduceMean", [x, axes], [f"{y}/mean"]),
        helper.make_node("Sub", [x, f"{y}/mean"], [f"{y}/centred"]),
        helper.make_node("Mul", [f"{y}/centred", f"{y}/centred"], [f"{y}/squares"]),
        helper.make_node("ReduceMean", [f"{y}/squares", axes], [f"{y}/variance"]),
        helper.make_node("Add", [f"{y}/variance", epsilon], [f"{y}/shifted"]),
        helper.make_node("Sqrt", [f"{y}/shifted"], [f"{y}/deviation"]),
        helper.make_node("Div", [f"{y}/centred", f"{y}/deviation"], [f"{y}/normed"]),
        helper.make_node("Mul", [f"{y}/normed", scale], [f"{y}/scaled" if bias else y]),
    ]
    return [*steps, helper.make_node("Add", [f"{y}/scaled", bias[0]], [y])] if bias else steps


STEPS = {"Softmax": _softmax, "LayerNormalization": _layer_norm}


def _constant(model: ModelProto, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _replace_nodes(graph: onnx.GraphProto, nodes: list[NodeProto]) -> None:
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
