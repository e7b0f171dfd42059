"""The 8-bit copies of the bundled networks take and give the same, nearly."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.check_pictures import check_pictures
from export.nano.quantize import detector_figures, matte_figures, open_session, quantized_nodes
from runtime.weights import FREE_DETECTOR, INT8_SUFFIX, NETWORKS

WEIGHTS = Path(__file__).resolve().parents[2] / "export" / "weights" / "nano"
LARGEST_FILE_BYTES = 15_000_000


@pytest.mark.parametrize("name", NETWORKS)
def test_the_copy_has_the_inputs_and_outputs_of_its_original(name: str) -> None:
    path = WEIGHTS / f"{name}{INT8_SUFFIX}"
    assert path.stat().st_size <= LARGEST_FILE_BYTES
    sessions = [open_session(WEIGHTS / f"{name}.onnx"), open_session(path)]
    ports = [[(each.name, each.type, each.shape) for each in (*s.get_inputs(), *s.get_outputs())] for s in sessions]
    assert ports[0] == ports[1]


def test_the_detector_finds_the_same_people() -> None:
    first, second = (open_session(WEIGHTS / f"yolov8_seg{suffix}") for suffix in (".onnx", INT8_SUFFIX))
    figures = detector_figures(first, second, iter(check_pictures(3, 640)[:, None]))
    assert figures["people"] >= 2
    assert figures["lost"] == 0
    assert figures["largest_score_error"] < 0.06
    assert figures["mask_iou"] > 0.95


def test_mattes_are_the_same() -> None:
    first, second = (open_session(WEIGHTS / f"birefnet_trt{suffix}") for suffix in (".onnx", INT8_SUFFIX))
    side = first.get_inputs()[0].shape[1]
    assert matte_figures(first, second, iter(check_pictures(3, side)[:, None]))["lowest_iou"] > 0.97


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_first_layers_stay_float32(name: str) -> None:
    graph = onnx.load(WEIGHTS / f"{name}{INT8_SUFFIX}").graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    convs = {
        node.name: made_by.get(node.input[1]) == "DequantizeLinear" for node in graph.node if node.op_type == "Conv"
    }
    heads = [name for name in convs if (".2/Conv" in name and "/cv" in name) or name == "/model/out/Conv"]
    assert heads
    first = [name for name in convs if name.startswith(("/model/model.0/", "/model/backbone"))]
    assert not any(convs[name] for name in (*heads, *first))
    assert np.mean([quantized for name, quantized in convs.items() if "/backbone" not in name]) > 0.6


def test_nothing_is_quantized_that_is_no_map() -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(WEIGHTS / f"{FREE_DETECTOR}.onnx"))
    assert all(quantized_nodes(model.graph))
    assert not any("cells" in name for name in quantized_nodes(model.graph))
