"""A traced graph without what the tracing left in it; what the graph computes stays the same."""

import hashlib
import math
from pathlib import Path
from typing import Any

SMALL = 1000
"""Constants of so many elements are shapes, axes, paddings and the like."""


def tidy(model: Any) -> None:
    """Make an ONNX model plainer, in place.

    - Equal initializers become one, whatever asked for them. A network that is run twice has its weights once.
    - Arithmetic on constants is done, and its nodes go.
    - `Identity` nodes go, and casts to the type that is there already; so do notes on where in the program a node
      came from.
    - A reshape that keeps the batch says so: 0, "as it is", in place of -1, "what is left". Then every shape is known
      but for the batch, and a runtime can plan its memory.
    """
    _merge_initializers(model.graph)
    _compute_constants(model)
    drop_identities(model)
    _keep_batch(model)
    for node in model.graph.node:
        node.ClearField("doc_string")


def store_half(path: Path) -> None:
    """Store a file's weights in half precision, each with a cast to float32 behind it, which runtimes compute once."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > SMALL:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}/Cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def widen_stored(model: Any) -> None:
    """Undo `store_half` in place: weights are float32 again, rounded as they are."""
    import numpy as np
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == tensor.FLOAT16}
    kept = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored:
            tensor = stored[node.input[0]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _merge_initializers(graph: Any) -> None:
    names: dict[bytes, str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        content = hashlib.sha256(tensor.raw_data or tensor.SerializeToString())
        content.update(repr((tensor.data_type, list(tensor.dims))).encode())
        first = names.setdefault(content.digest(), tensor.name)
        if first != tensor.name:
            renamed[tensor.name] = first
    _rename(graph, renamed)
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in renamed:
            del graph.initializer[index]


def _compute_constants(model: Any) -> None:
    """Replace nodes that depend on nothing but small constants by their result."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known = {node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in _constants(graph)}
    known = {name: values for name, values in known.items() if values.size <= SMALL}
    nodes = []
    for node in graph.node:
        computable = node.op_type != "Constant" and node.input and all(n in known or not n for n in node.input)
        if computable and len(node.output) == 1:
            inputs = [helper.make_tensor_value_info(n, 0, None) for n in node.input if n]
            outputs = [helper.make_tensor_value_info(node.output[0], 0, None)]
            alone = helper.make_model(
                helper.make_graph([node], "one", inputs, outputs), opset_imports=model.opset_import
            )
            values = ReferenceEvaluator(alone).run(None, {n: known[n] for n in node.input if n})[0]
            known[node.output[0]] = values
            node = helper.make_node("Constant", [], node.output, node.name, value=numpy_helper.from_array(values))
        nodes.append(node)
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "Constant" or node.output[0] in used)


def _constants(graph: Any) -> list[Any]:
    return [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]


def drop_identities(model: Any) -> None:
    """Take out Identity, which the exporter writes for weights used twice, and Cast to the type that is there."""
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in _inferred_values(model)}
    outputs = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        cast_to = node.attribute[0].i if node.op_type == "Cast" else None
        same = node.op_type == "Identity" or (cast_to is not None and types.get(node.input[0]) == cast_to)
        if same and node.output[0] not in outputs:
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    _rename(graph, renamed)


def _rename(graph: Any, renamed: dict[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]


def _keep_batch(model: Any) -> None:
    """Say 0 for the first dimension of a reshape wherever as much lies behind it as before the reshape."""
    from onnx import numpy_helper

    constants = {node.output[0]: node.attribute[0].t for node in _constants(model.graph)}
    behind = {}
    for value in _inferred_values(model):
        dimensions = value.type.tensor_type.shape.dim[1:]
        if all(dimension.HasField("dim_value") for dimension in dimensions):
            behind[value.name] = math.prod(dimension.dim_value for dimension in dimensions)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        tensor = constants[node.input[1]]
        shape = numpy_helper.to_array(tensor).copy()
        if shape[0] == -1 and (shape[1:] > 0).all() and behind.get(node.input[0]) == shape[1:].prod():
            shape[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(shape))


def _inferred_values(model: Any) -> list[Any]:
    """What inference says of the type and shape of every tensor."""
    import onnx

    # Inference copies the whole model: for it, weights are inputs of which it sees the shape alone.
    weights = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    ]
    graph = onnx.helper.make_graph(model.graph.node, "light", [*model.graph.input, *weights], model.graph.output)
    light = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    inferred = onnx.shape_inference.infer_shapes(light).graph
    return [*inferred.value_info, *inferred.input, *inferred.output]
