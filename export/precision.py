"""From a float32 ONNX file to a strongly typed half-precision one with the same inputs and outputs.

    report = to_half(Path("birefnet_trt.onnx"), Path("birefnet_trt.fp16.onnx"))

Strongly typed means that every tensor has one type, written down, and every change of type is a Cast: TensorRT 11 takes
nothing else, TensorRT 10 takes it with `STRONGLY_TYPED`. What stays float32 is found by the graph's structure (`Part`)
and not by the names of nodes, which differ from one export to the next.

The converter is the project's own. The one that comes with ONNX Runtime casts the result of every float32 node to half,
and back for the next one, so that a chain of float32 nodes still rounds between any two of them: coordinates kept that
way are no better than half ones (docs/precision.md; tests/export/test_precision.py compares both).
ModelOpt's AutoCast 0.47 does the same (nano: 0.0106 grey levels, this 0.0089), and its environment has 6.5 GB.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export import ExportError
from export.graph_parts import GRID, SHAPE_ONLY, Wiring, computed_from_pictures, has_subgraphs, holds_half, parts_of
from export.onnx_tidy import drop_identities, widen_stored

Part = Literal["input", "output", "boxes", "coordinates", "sampling", "offsets", "means", "norms", "softmax", "rest"]
"""A part of the graph that can stay float32:

input: from the uint8 picture through its normalisation, up to the first node that is not elementwise.
output: from the last convolutions' results to the uint8 alpha: joining, sigmoid, 255, rounding.
boxes: from the detector's last convolutions' results to boxes, scores and classes, and the choice of the best.
coordinates: from the offset convolutions' results to the grids of GridSample, and the grids as it takes them.
sampling: GridSample with its features. ONNX lets them be half where the grid is float32, TensorRT does not: with
    coordinates kept and sampling not, the file is good for measuring alone.
offsets: the offset convolutions themselves.
means: means and sums over an axis.
norms: layer, group and instance normalisation.
softmax: Softmax, wherever it stands.
rest: all that is in no other part: convolutions, matrix products, what lies between them.
"""
PARTS: tuple[Part, ...] = get_args(Part)

KEEP: tuple[Part, ...] = ("input", "output", "boxes", "coordinates", "sampling", "means")
"""The default, by the tables in docs/precision.md and for little: these are nodes of few channels or of few values.

Coordinates move sampling by hundredths of a pixel on a map of 256 px and more on larger ones; and TensorRT wants the
features that GridSample reads in the type of its grid. The output is where a grey level is decided, the input where a
picture's values would be rounded three times instead of once, boxes are pixels up to 640, where half precision counts
in halves. A mean over a map of 256×256 may sum its 65536 values in half precision, whose range ends there. Norms and
softmax are not in it: ONNX has the statistics of LayerNormalization computed in float32 whatever its type, and
float32 nodes around them bring no more, since half nodes read what they give.
"""

SMALL = 64
"""Values of a tensor that inference may want to know: sizes, axes."""
LARGEST_HALF = float(np.finfo(np.float16).max)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
SUFFIXES = {FLOAT: "/float", HALF: "/half"}


class PrecisionError(ExportError, ValueError):
    """The file cannot be turned into a half-precision one.

    model.onnx holds half-precision weights already
    """


@dataclass(frozen=True)
class HalfReport:
    """What `to_half` did."""

    half_nodes: int
    """Nodes that compute in half precision."""
    float32_nodes: dict[str, int]
    """Nodes that stayed float32, by the reason: a `Part`, "constant" (of a value that half precision has not),
    "standard" (the operator has no half form) or "size" (computed from sizes and constants alone). A node of two parts
    counts for the first."""
    casts: int
    """Nodes that change the type of a tensor, beside those that the source had."""
    clamped: tuple[str, ...]
    """Weights with finite values beyond the range of half precision, which were set to its ends."""
    vanished: int
    """Weights, of `weights`, that are not 0 in float32 and are in half precision: below 3e-8."""
    weights: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        kept = ", ".join(f"{count} {reason}" for reason, count in self.float32_nodes.items())
        text = (
            f"{self.half_nodes} nodes in half precision, {sum(self.float32_nodes.values())} in float32 ({kept}), "
            f"{self.casts} casts; {self.bytes_before / 1e6:.1f} MB to {self.bytes_after / 1e6:.1f} MB; "
            f"{self.vanished} of {self.weights} weights too small for half precision"
        )
        return f"{text}; out of its range and cut: {', '.join(self.clamped)}" if self.clamped else text


def to_half(source: Path, target: Path, keep: Collection[Part] = KEEP) -> HalfReport:
    """Write the half-precision form of a float32 ONNX file.

    The result has the inputs and outputs of the source, types included. It passes ONNX's full check, and the types that
    strict inference finds for its tensors are the ones meant.

    Args:
        source: a float32 file without branches or loops.
        target: where the result goes; appears when it is complete.
        keep: what stays float32.

    Raises:
        PrecisionError: when the file has subgraphs, tensors of unknown type, or half-precision weights already.
    """
    model = prepared(source)
    conversion = _Conversion(model, frozenset(keep))
    conversion.run()
    onnx.checker.check_model(model, full_check=True)
    wrong = [name for name, kind in tensor_types(model).items() if conversion.meant.get(name, kind) != kind]
    if wrong:
        raise PrecisionError(f"{source.name}: the tensors {', '.join(wrong[:5])} came out of another type than meant")
    part = target.with_name(f"{target.name}.part")
    onnx.save(model, part)
    part.replace(target)
    return HalfReport(
        half_nodes=len(conversion.half),
        float32_nodes=dict(Counter(conversion.reasons.values())),
        casts=conversion.casts,
        clamped=tuple(conversion.clamped),
        vanished=conversion.vanished,
        weights=conversion.weights,
        bytes_before=source.stat().st_size,
        bytes_after=target.stat().st_size,
    )


def prepared(source: Path) -> ModelProto:
    """The float32 graph as `to_half` takes it up: pictures cast first, constants as initializers, nothing idle.

    Raises:
        PrecisionError: see `to_half`.
    """
    model = onnx.load(source)
    widen_stored(model)
    if model.functions or has_subgraphs(model.graph.node):
        raise PrecisionError(f"{source.name} has subgraphs, which are not converted")
    if any(tensor.data_type == HALF for tensor in model.graph.initializer):
        raise PrecisionError(f"{source.name} holds half-precision weights already")
    cast_pictures_first(model)
    _lift_constants(model)
    drop_identities(model)
    return model


def staying_float32(model: ModelProto, keep: Collection[Part]) -> dict[int, str]:
    """The nodes of a prepared graph that `to_half` leaves float32, by their place: why (`HalfReport.float32_nodes`)."""
    return _Conversion(model, frozenset(keep)).reasons


class _Conversion:
    """One graph on its way. Every float32 tensor of the source gets a half form, a float32 form, or both."""

    def __init__(self, model: ModelProto, keep: frozenset[Part]) -> None:
        self.graph = model.graph
        self.keep = keep
        self.wiring = Wiring(model.graph)
        self.opset = next(each.version for each in model.opset_import if each.domain == "")
        self.kinds = tensor_types(model)
        unknown = {name for node in self.graph.node for name in node.output if name} - set(self.kinds)
        if unknown:
            raise PrecisionError(f"the type of the tensor {min(unknown)} cannot be told")
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.reasons = self._reasons_for_float32()
        self.half = {place for place in self._carrying_floats() if place not in self.reasons}
        self.forms: dict[tuple[str, int], str] = {}
        self.meant: dict[str, int] = {}
        self.made: list[NodeProto] = []
        self.written: list[TensorProto] = []
        self.casts = self.vanished = self.weights = 0
        self.clamped: list[str] = []

    def run(self) -> None:
        outputs = {value.name for value in self.graph.output}
        for value in self.graph.input:
            self.forms[value.name, self.kinds[value.name]] = value.name
        for place, node in enumerate(self.wiring.nodes):
            half = place in self.half
            takes, gives = holds_half(node, self.opset) if half else ([], [])
            for slot, name in enumerate(node.input):
                if name and self.kinds[name] == FLOAT:
                    wanted = HALF if half and takes[slot] and not self._is_kept_grid(node, slot) else FLOAT
                    if node.op_type in SHAPE_ONLY and (name, HALF) in self.forms:
                        wanted = HALF  # its values do not matter, so they need no cast
                    node.input[slot] = self._form(name, wanted)
            if half and node.op_type == "Cast" and self.kinds[node.output[0]] == FLOAT:
                next(each for each in node.attribute if each.name == "to").i = HALF
            self.made.append(node)
            for slot, name in enumerate(node.output):
                if name:
                    self._give(node, slot, HALF if half and gives[slot] else FLOAT, name in outputs)
        for field, entries in ((self.graph.node, self.made), (self.graph.initializer, self.written)):
            del field[:]
            field.extend(entries)
        del self.graph.value_info[:]

    def _give(self, node: NodeProto, slot: int, kind: int, is_output: bool) -> None:
        """Note the type of what the node computes; an output of the graph keeps its own."""
        name = node.output[slot]
        if self.kinds[name] != FLOAT:
            self.forms[name, self.kinds[name]] = name
            self.meant[name] = self.kinds[name]
            return
        given = name + SUFFIXES[HALF] if is_output and kind == HALF else name
        node.output[slot] = given
        self.forms[name, kind] = given
        self.meant[given] = kind
        if given != name:
            self._cast(given, name, FLOAT)
            self.forms[name, FLOAT] = name

    def _form(self, name: str, kind: int) -> str:
        """The tensor's name in this type; it is written or cast at its first use."""
        if (name, kind) not in self.forms:
            form = name if kind == FLOAT and name in self.initializers else name + SUFFIXES[kind]
            if name in self.initializers:
                self.written.append(self._typed(self.initializers[name], form, kind))
            else:
                other = FLOAT if kind == HALF else HALF
                self._cast(self.forms[name, other], form, kind)
            self.forms[name, kind] = form
            self.meant[form] = kind
        return self.forms[name, kind]

    def _cast(self, given: str, wanted: str, kind: int) -> None:
        self.made.append(helper.make_node("Cast", [given], [wanted], name=f"{wanted}/cast", to=kind))
        self.meant[wanted] = kind
        self.casts += 1

    def _typed(self, tensor: TensorProto, name: str, kind: int) -> TensorProto:
        values = numpy_helper.to_array(tensor)
        if kind == HALF:
            halves = as_half(values)
            if not np.array_equal(np.isinf(halves), np.isinf(values)):
                raise AssertionError("as_half keeps finite values finite")
            self.weights += values.size
            self.vanished += int(np.count_nonzero((values != 0) & (halves == 0)))
            if np.any(np.isfinite(values) & (np.abs(values) > LARGEST_HALF)):
                self.clamped.append(tensor.name)
            values = halves
        return numpy_helper.from_array(values, name)

    def _reasons_for_float32(self) -> dict[int, str]:
        """Why a node stays float32, by its place; nodes that carry no float32 tensor are left out."""
        carrying = self._carrying_floats()
        parts = parts_of(self.wiring)
        parts["rest"] = set(carrying).difference(*parts.values())
        telling = computed_from_pictures(self.wiring)
        reasons: dict[int, str] = {}
        for place in carrying:
            node = self.wiring.nodes[place]
            takes, gives = holds_half(node, self.opset)
            fixed = [self.kinds[name] == FLOAT and not half for name, half in zip(node.output, gives, strict=True)]
            if place not in telling:
                reasons[place] = "size"
            elif any(fixed) or not takes[0]:
                reasons[place] = "standard"
            elif any(place in parts[part] for part in self.keep):
                reasons[place] = next(part for part in PARTS if part in self.keep and place in parts[part])
            elif any(self._is_unholdable(name) for name in node.input):
                reasons[place] = "constant"
        return reasons

    def _carrying_floats(self) -> list[int]:
        return [
            place
            for place, node in enumerate(self.wiring.nodes)
            if any(name and self.kinds[name] == FLOAT for name in (*node.input, *node.output))
        ]

    def _is_unholdable(self, name: str) -> bool:
        """Whether this is a single float32 constant that half precision would turn into 0 or cut."""
        tensor = self.initializers.get(name)
        if tensor is None or self.kinds[name] != FLOAT or int(np.prod(tensor.dims)) != 1:
            return False
        value = float(numpy_helper.to_array(tensor).reshape(()))
        return (np.isfinite(value) and abs(value) > LARGEST_HALF) or (value != 0 and float(np.float16(value)) == 0)

    def _is_kept_grid(self, node: NodeProto, slot: int) -> bool:
        # ONNX lets the grid have another type than the features.
        return node.op_type == "GridSample" and slot == GRID and "coordinates" in self.keep


def as_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """The nearest half-precision values, float16 of the same shape; finite ones stay finite."""
    cut = np.clip(values, -LARGEST_HALF, LARGEST_HALF)
    return np.where(np.isfinite(values), cut, values).astype(np.float16)


def cast_pictures_first(model: ModelProto) -> None:
    """Put the Cast of a uint8 input before its Transpose, in place: TensorRT takes uint8 in no node but a Cast."""
    graph = model.graph
    bytes_in = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    for place, node in enumerate(graph.node):
        if node.op_type != "Transpose" or node.input[0] not in bytes_in:
            continue
        users = [(at, user) for at, user in enumerate(graph.node) if node.output[0] in user.input]
        if len(users) != 1 or users[0][1].op_type != "Cast":
            raise PrecisionError(f"the picture {node.input[0]} is used as uint8 by more than a Cast")
        at, cast = users[0]
        # The first of the two becomes the Cast, the second the Transpose; names of tensors stay where they are.
        first, second = NodeProto(), NodeProto()
        first.CopyFrom(cast)
        second.CopyFrom(node)
        first.input[0], first.output[0] = node.input[0], node.output[0]
        second.input[0], second.output[0] = cast.input[0], cast.output[0]
        graph.node[place].CopyFrom(first)
        graph.node[at].CopyFrom(second)
        stale = [value for value in graph.value_info if value.name == node.output[0]]
        for value in stale:
            graph.value_info.remove(value)


def tensor_types(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor, as strict inference finds it."""
    # Inference copies the model several times. Of large weights it needs the shapes alone, which inputs have, too.
    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) > SMALL:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            graph.initializer.append(tensor)
    skeleton = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True).graph
    values = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    return values | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def _lift_constants(model: ModelProto) -> None:
    """Make initializers of the Constant nodes that hold float32 tensors."""
    graph = model.graph
    staying = []
    for node in graph.node:
        tensor = next((each.t for each in node.attribute if each.name == "value"), None)
        if node.op_type == "Constant" and tensor is not None and tensor.data_type == FLOAT:
            lifted = graph.initializer.add()
            lifted.CopyFrom(tensor)
            lifted.name = node.output[0]
        else:
            staying.append(node)
    del graph.node[:]
    graph.node.extend(staying)
