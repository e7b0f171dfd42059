"""Which nodes of an exported graph belong together, found by how they are joined.

Names of nodes and tensors are the exporter's and change with it; that a GridSample takes a grid, that a grid comes from
a convolution, that the picture is uint8, does not.
"""

from collections.abc import Callable, Iterable
from typing import Any

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, defs

LEARNED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "DeformConv"})
NORMALISING_INPUT = frozenset({"Cast", "Transpose", "Div", "Mul", "Sub", "Add"})
NORMS = frozenset({"LayerNormalization", "GroupNormalization", "InstanceNormalization"})
MEANS = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool"})
BOX_OUTPUTS = frozenset({"boxes", "scores", "classes"})
SHAPE_ONLY = frozenset({"Shape", "Size"})
"""Operators whose result says nothing of the values of their input."""
GRID = 1
"""Which input of GridSample the grid is."""


class Wiring:
    """Who computes each tensor of a graph. Nodes are numbered by their place in it."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.nodes = list(graph.node)
        self.producer = {name: place for place, node in enumerate(self.nodes) for name in node.output if name}
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def behind(self, tensors: Iterable[str], stop: Callable[[NodeProto], bool]) -> set[int]:
        """The nodes that compute these tensors, back to those for which `stop` holds, which are left out.

        What computes mere sizes is left out, too.
        """
        return self._walk(tensors, stop)[0]

    def sources(self, tensors: Iterable[str], stop: Callable[[NodeProto], bool]) -> set[int]:
        """The nodes at which `behind` stops."""
        return self._walk(tensors, stop)[1]

    def _walk(self, tensors: Iterable[str], stop: Callable[[NodeProto], bool]) -> tuple[set[int], set[int]]:
        found: set[int] = set()
        stopped: set[int] = set()
        waiting = list(tensors)
        while waiting:
            place = self.producer.get(waiting.pop())
            if place is None or place in found or self.nodes[place].op_type in SHAPE_ONLY:
                continue
            if stop(self.nodes[place]):
                stopped.add(place)
            else:
                found.add(place)
                waiting.extend(self.nodes[place].input)
        return found, stopped

    def grids(self) -> list[str]:
        return [node.input[GRID] for node in self.nodes if node.op_type == "GridSample"]

    def learned(self, node: NodeProto) -> bool:
        return node.op_type in LEARNED

    def mixes_channels(self, node: NodeProto) -> bool:
        """A learned layer; not the convolution to one channel that takes the mean of a distribution of distances."""
        if node.op_type == "Conv" and self.shapes.get(node.input[1], (0,))[0] == 1:
            return False
        return node.op_type in LEARNED


def parts_of(wiring: Wiring) -> dict[str, set[int]]:
    """The nodes of each part that `export.precision.Part` names."""
    nodes, outputs = wiring.nodes, {output.name: output for output in wiring.graph.output}
    alphas = [name for name, output in outputs.items() if output.type.tensor_type.elem_type == TensorProto.UINT8]
    grids = wiring.grids()
    return {
        "input": _normalisation(wiring),
        "output": wiring.behind(alphas, wiring.learned),
        "boxes": wiring.behind(BOX_OUTPUTS & set(outputs), wiring.mixes_channels),
        "coordinates": wiring.behind(grids, wiring.learned),
        "offsets": wiring.sources(grids, wiring.learned),
        "sampling": _of_types(nodes, frozenset({"GridSample"})),
        "means": _of_types(nodes, MEANS),
        "norms": _of_types(nodes, NORMS),
        "softmax": _of_types(nodes, frozenset({"Softmax"})),
    }


def computed_from_pictures(wiring: Wiring) -> set[int]:
    """The nodes whose result depends on what is in the picture; the others compute sizes and constants."""
    telling = {value.name for value in wiring.graph.input}
    found = set()
    for place, node in enumerate(wiring.nodes):
        if node.op_type not in SHAPE_ONLY and telling.intersection(node.input):
            found.add(place)
            telling.update(node.output)
    return found


def holds_half(node: NodeProto, opset: int) -> tuple[list[bool], list[bool]]:
    """Whether the operator's standard allows half precision: for each input and each output of the node."""
    schema = defs.get_schema(node.op_type, opset, node.domain)
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}

    def half(parameters: Any, place: int) -> bool:
        # The last of a variable number of inputs stands for all that follow.
        kind = parameters[min(place, len(parameters) - 1)].type_str
        return "tensor(float16)" in list(allowed.get(kind, [kind]))

    inputs = [half(schema.inputs, place) for place in range(len(node.input))]
    return inputs, [half(schema.outputs, place) for place in range(len(node.output))]


def has_subgraphs(nodes: Iterable[NodeProto]) -> bool:
    kinds = {attribute.type for node in nodes for attribute in node.attribute}
    return bool(kinds & {AttributeProto.GRAPH, AttributeProto.GRAPHS})


def _of_types(nodes: list[NodeProto], types: frozenset[str]) -> set[int]:
    return {place for place, node in enumerate(nodes) if node.op_type in types}


def _normalisation(wiring: Wiring) -> set[int]:
    reached = {value.name for value in wiring.graph.input}
    constants = {name for node in wiring.nodes if node.op_type == "Constant" for name in node.output}
    found = set()
    for place, node in enumerate(wiring.nodes):
        computed = {name for name in node.input if name in wiring.producer} - constants
        if node.op_type in NORMALISING_INPUT and reached.intersection(node.input) and computed <= reached:
            found.add(place)
            reached.update(node.output)
    return found
