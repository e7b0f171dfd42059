"""Make of the bundled detector one that takes pictures of any size: `python -m export.nano.free_sizes`.

A video's frames are to be answered within a frame's time, and the network's time grows with its pixels, so streams
give it fewer than 640 × 640, and in the frame's own shape. YOLOv8 is convolutional but for one thing: the centres of
its cells, which tracing left in the file as constants for 640 × 640. Here they become what they were computed from.
Weights are the same; at 640 × 640 so are all results, bit for bit.

Writes `yolov8_seg_free.onnx` beside `yolov8_seg.onnx`, and its line of `SHA256SUMS`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.graphs import DETECTOR_OUTPUTS, DETECTOR_SIDE_PX
from export.onnx_export import example_pictures
from runtime.digest import sha256_of

SOURCE, TARGET = "yolov8_seg.onnx", "yolov8_seg_free.onnx"
STRIDES_PX = (8, 16, 32)
CELLS = sum((DETECTOR_SIDE_PX // stride_px) ** 2 for stride_px in STRIDES_PX)


def free_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The detector with open sides: `images` uint8 [batch, height, width, 3], both multiples of 32."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    centres, strides = _constants_of_cells(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in (*centres, *strides):
            continue
        if node.op_type == "Constant":
            _open_reshape(node)
        elif any(name in centres for name in node.input) and not any("cells" in each.output for each in nodes):
            nodes.extend(_cells(graph))
        for index, name in enumerate(node.input):
            if name in centres:
                node.input[index] = "cells"
            elif name in strides:
                node.input[index] = "strides_px"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _open_dimensions(graph)
    onnx.checker.check_model(result, full_check=True)
    return result


def _constants_of_cells(graph: onnx.GraphProto) -> tuple[list[str], list[str]]:
    """Names of the constants with the cells' centres, (2, cells), and with their strides, (1, cells)."""
    shapes = {
        node.output[0]: tuple(node.attribute[0].t.dims)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    centres = [name for name, shape in shapes.items() if shape == (2, CELLS)]
    strides = [name for name, shape in shapes.items() if shape == (1, CELLS)]
    if not centres or not strides:
        raise ValueError("the file does not hold the centres of the cells as constants: is it our detector?")
    return centres, strides


def _open_reshape(constant: onnx.NodeProto) -> None:
    """Where a reshape names the number of cells, let it be what is left, and keep the batch."""
    value = numpy_helper.to_array(constant.attribute[0].t)
    if value.ndim == 1 and CELLS in value.tolist():
        opened = [{-1: 0, CELLS: -1}.get(size, size) for size in value.tolist()]
        constant.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(opened, value.dtype)))


def _cells(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that compute `cells`, float [2, cells] (x, y), and `strides_px`, float [1, cells]."""
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"cells.{name}"))
        return f"cells.{name}"

    def node(kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    zero, one, half = (
        constant(name, np.array(value, np.float32))
        for name, value in zip(("zero", "one", "half"), (0, 1, 0.5), strict=True)
    )
    row, column = constant("row", np.array([1, -1], np.int64)), constant("column", np.array([-1, 1], np.int64))
    parts: dict[str, list[str]] = {"x": [], "y": [], "stride": []}
    for level, stride_px in enumerate(STRIDES_PX):
        size = node("Shape", [f"/model/cv3.{level}/cv3.{level}.2/Conv_output_0"], f"cells.{level}.size", start=2, end=4)
        for axis, index, line in (("y", 0, column), ("x", 1, row)):
            name = f"cells.{level}.{axis}"
            length = node(
                "Gather", [size, constant(f"{level}.{axis}.index", np.array(index, np.int64))], f"{name}.length"
            )
            count = node(
                "Range",
                [zero, node("Cast", [length], f"{name}.float", to=onnx.TensorProto.FLOAT), one],
                f"{name}.count",
            )
            middles = node("Reshape", [node("Add", [count, half], f"{name}.middles"), line], f"{name}.line")
            parts[axis].append(node("Reshape", [node("Expand", [middles, size], f"{name}.grid"), row], name))
        stride = constant(f"{level}.stride_px", np.array([[stride_px]], np.float32))
        shape = node("Shape", [f"cells.{level}.x"], f"cells.{level}.shape")
        parts["stride"].append(node("Expand", [stride, shape], f"cells.{level}.strides_px"))
    axes = [node("Concat", parts[axis], f"cells.{axis}", axis=1) for axis in ("x", "y")]
    node("Concat", axes, "cells", axis=0)
    node("Concat", parts["stride"], "strides_px", axis=1)
    return nodes


def _open_dimensions(graph: onnx.GraphProto) -> None:
    """Name the sides of inputs and outputs instead of numbering them."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name == "images":
            dims[1].dim_param, dims[2].dim_param = "height", "width"
        elif value.name == "prototypes":
            dims[2].dim_param, dims[3].dim_param = "mask_height", "mask_width"


def same_results(first: Path, second: Path) -> bool:
    """Whether two detectors answer the same, bit for bit, at the side that both take."""
    pictures = example_pictures(2, DETECTOR_SIDE_PX)
    answers = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            list(DETECTOR_OUTPUTS), {"images": pictures}
        )
        for path in (first, second)
    ]
    return all(np.array_equal(one, other) for one, other in zip(*answers, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Write the file; exit status 1 where its results differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("export/weights/nano"))
    folder = parser.parse_args(arguments).folder
    onnx.save(free_sizes(onnx.load(folder / SOURCE)), folder / TARGET)
    sums = folder / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(f"  {TARGET}")]
    sums.write_text("\n".join([*lines, f"{sha256_of(folder / TARGET)}  {TARGET}"]) + "\n")
    good = same_results(folder / SOURCE, folder / TARGET)
    print(f"{folder / TARGET}: {'the same results' if good else 'OTHER RESULTS'} at {DETECTOR_SIDE_PX} px")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
