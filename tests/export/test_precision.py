"""Half-precision files are what they say: one type per tensor, the same inputs and outputs, coordinates in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from benchmarks.gpu_models import find_pictures, squares
from export.check_pictures import check_pictures
from export.half_emulation import emulate
from export.networks.deform import DeformableConv2d
from export.onnx_export import export_graph
from export.precision import KEEP, PARTS, PrecisionError, as_half, prepared, staying_float32, tensor_types, to_half
from tests.export.half_graphs import (
    DEFAULT,
    DEFORMABLE,
    Choice,
    compare_detections,
    compare_mattes,
    detections,
    half_model,
    mattes,
    sampled_sides,
)

WEIGHTS = Path(__file__).resolve().parents[2] / "export" / "weights" / "nano"
MATTE, DETECTOR = WEIGHTS / "birefnet_trt.onnx", WEIGHTS / "yolov8_seg.onnx"
FLOAT, HALF, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8
OPSET = 18
WITHOUT_COORDINATES = tuple(part for part in KEEP if part != "coordinates")


def run(model: onnx.ModelProto | Path, inputs: dict[str, Any]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def graph_of(nodes: list[onnx.NodeProto], weights: dict[str, Any], inputs: Any, outputs: Any, path: Path) -> Path:
    """Write a small graph; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8), path)
    return path


@pytest.mark.parametrize("source", [MATTE, DEFORMABLE, DETECTOR], ids=lambda path: path.stem)
def test_bundled_file_becomes_half(source: Path, tmp_path: Path) -> None:
    """Same inputs and outputs, two bytes a weight, valid by ONNX's full check, and the same at batch 1 and 3."""
    target = tmp_path / "half.onnx"
    report = to_half(source, target)
    before, after = onnx.load(source), onnx.load(target)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert report.bytes_after == target.stat().st_size < 2.4 * report.weights
    assert report.half_nodes > 150
    assert not report.clamped
    pictures = check_pictures(3, int(after.graph.input[0].type.tensor_type.shape.dim[1].dim_value))
    together = run(target, {"images": pictures})
    assert together[0].std() > 5, "there is nothing in what is compared"
    alone = run(target, {"images": pictures[:1]})
    for output, batch, single in zip(after.graph.output, together, alone, strict=True):
        assert batch.dtype == helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
        assert batch.shape[1:] == single.shape[1:]
        if output.name in ("alphas", "scores", "prototypes"):
            assert np.abs(batch[0].astype(np.float64) - single[0]).max() <= (1 if output.name == "alphas" else 1e-2)


@pytest.mark.parametrize("source", [MATTE, DEFORMABLE, DETECTOR], ids=lambda path: path.stem)
def test_tensorrt_can_type_it(source: Path, tmp_path: Path) -> None:
    """Pictures are cast before anything else; both inputs of a GridSample, of a sum, of a product have one type."""
    to_half(source, tmp_path / "half.onnx")
    model = onnx.load(tmp_path / "half.onnx")
    kinds = tensor_types(model)
    readers = [node.op_type for node in model.graph.node if "images" in node.input]
    assert readers == ["Cast"]
    typed_alike = ("GridSample", "Add", "Mul", "Sub", "Div", "Concat", "MatMul", "Conv", "LayerNormalization")
    seen = set()
    for node in model.graph.node:
        if node.op_type in typed_alike:
            floats = {kinds[name] for name in node.input if kinds[name] in (FLOAT, HALF)}
            assert len(floats) <= 1, node.name
            seen.update((node.op_type, kind) for kind in floats)
    assert ("Conv", HALF) in seen
    assert ("Conv", FLOAT) not in seen or source == DETECTOR  # its mean of distances, to one channel
    if source == DEFORMABLE:
        assert ("GridSample", FLOAT) in seen
        assert ("GridSample", HALF) not in seen


class Deforming(nn.Module):
    """One deformable convolution on a large map: what it samples depends on coordinates, to a fraction of a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.deform = DeformableConv2d(3, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 1, 1)
        nn.init.normal_(self.deform.offset_conv.weight, std=1.0)
        nn.init.normal_(self.deform.modulator_conv.weight, std=0.5)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [N, S, S, 3] to uint8 [N, S, S]."""
        logits = self.out(self.deform(images.permute(0, 3, 1, 2).float() / 255.0))
        return (logits.squeeze(1).sigmoid() * 255.0).round().to(torch.uint8)


def test_coordinates_stay_float32(tmp_path: Path) -> None:
    """The default samples within a hundredth of a pixel; without `coordinates` it does not, and alphas tell."""
    torch.manual_seed(3)
    source, side_px = tmp_path / "deforming.onnx", 256
    export_graph(Deforming().eval(), side_px, ("alphas",), source)
    pictures = np.random.default_rng(1).integers(0, 256, (1, side_px, side_px, 3), np.uint8)
    plain = prepared(source)
    wanted, sides = mattes(plain, pictures), sampled_sides(plain)
    assert sides == [side_px]
    kept, lost = (
        compare_mattes("", mattes(emulate(half_model(source, Choice("", keep))), pictures), wanted, sides)
        for keep in (KEEP, WITHOUT_COORDINATES)
    )
    assert kept.coordinates_px <= 0.003
    assert lost.coordinates_px > 0.01
    assert kept.mean <= 0.1
    assert lost.mean > 2 * kept.mean
    by_their_converter = half_model(source, Choice("", KEEP, plain=True))
    theirs = compare_mattes("", mattes(emulate(by_their_converter), pictures), wanted, sides)
    assert theirs.coordinates_px > 0.01  # why the project has a converter of its own


@pytest.mark.parametrize(("source", "side_px"), [(MATTE, 320), (DEFORMABLE, 384)], ids=["nano", "deformable"])
def test_mattes_of_the_samples_stay(source: Path, side_px: int) -> None:
    """A trained network's alphas in half precision, every tensor rounded, are float32's but for a few levels."""
    pictures = squares(find_pictures(2), side_px)
    plain = prepared(source)
    found = mattes(emulate(half_model(source, DEFAULT)), pictures)
    row = compare_mattes("", found, mattes(plain, pictures), sampled_sides(plain))
    assert 0 < row.mean <= 0.1
    assert row.largest <= 10
    assert row.iou >= 0.999
    assert row.peak < 0.1 * np.finfo(np.float16).max


def test_boxes_of_the_samples_stay() -> None:
    """Candidates are found again at the same place. In half precision throughout they move further."""
    pictures = squares(find_pictures(2), 640)
    wanted = detections(prepared(DETECTOR), pictures)
    kept, lost = (
        compare_detections("", detections(emulate(half_model(DETECTOR, choice)), pictures), wanted)
        for choice in (DEFAULT, Choice("", ()))
    )
    assert kept.candidates == kept.matched >= 10
    assert kept.box_mean_px <= 0.1
    assert kept.score <= 0.02
    assert lost.box_mean_px > 1.2 * kept.box_mean_px


def test_emulation_rounds_as_numpy_does(tmp_path: Path) -> None:
    """Products with sums in float32, each rounded to half: exactly numpy's. ONNX Runtime itself does not round."""
    rng = np.random.default_rng(2)
    first, second = (rng.integers(-40, 40, (16, 16)).astype(np.float32) / 8 for _ in range(2))
    source = graph_of(
        [helper.make_node("MatMul", ["x", "a"], ["y"]), helper.make_node("MatMul", ["y", "b"], ["z"])],
        {"a": first, "b": second},
        [("x", FLOAT, [4, 16])],
        [("z", FLOAT, [4, 16])],
        tmp_path / "products.onnx",
    )
    x = rng.integers(-99, 99, (4, 16)).astype(np.float32) / 16
    to_half(source, tmp_path / "half.onnx")
    half = onnx.load(tmp_path / "half.onnx")
    once = (x @ first).astype(np.float16).astype(np.float32)
    twice = (once @ second).astype(np.float16).astype(np.float32)
    assert np.any(once != x @ first)
    (found,) = run(emulate(half), {"x": x})
    np.testing.assert_array_equal(found, twice)
    (unrounded,) = run(half, {"x": x})
    assert np.any(unrounded != twice)


def test_norms_and_softmax_step_by_step(tmp_path: Path) -> None:
    """Taken apart they compute the same, and round in between."""
    rng = np.random.default_rng(4)
    scale, bias = (rng.normal(1, 0.2, 32).astype(np.float32) for _ in range(2))
    source = graph_of(
        [
            helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["y"], epsilon=1e-5),
            helper.make_node("Softmax", ["y"], ["z"], axis=-1),
        ],
        {"scale": scale, "bias": bias},
        [("x", FLOAT, [5, 32])],
        [("z", FLOAT, [5, 32])],
        tmp_path / "steps.onnx",
    )
    x = rng.normal(3, 2, (5, 32)).astype(np.float32)
    to_half(source, tmp_path / "half.onnx")
    half = onnx.load(tmp_path / "half.onnx")
    (wanted,), (whole,), (steps,) = (
        run(model, {"x": x}) for model in (onnx.load(source), emulate(half), emulate(half, stepwise=True))
    )
    np.testing.assert_allclose(whole, wanted, rtol=1e-2)
    np.testing.assert_allclose(steps, wanted, rtol=1e-2)
    assert np.any(steps != whole)


def test_values_that_half_has_not(tmp_path: Path) -> None:
    """Single constants out of range keep their node float32; weights are cut and counted; infinity stays."""
    weights = np.array([[1.0, 1e6, 1e-9, 0.0], [-np.inf, -1e9, 0.5, 2.0]], np.float32)
    source = graph_of(
        [
            helper.make_node("Mul", ["x", "weights"], ["a"]),
            helper.make_node("Add", ["a", "epsilon"], ["b"]),
            helper.make_node("Add", ["b", "penalty"], ["c"]),
            helper.make_node("Add", ["c", "one"], ["y"]),
        ],
        {"weights": weights, "epsilon": np.float32(1e-12), "penalty": np.float32(-1e9), "one": np.float32(1)},
        [("x", FLOAT, [2, 4])],
        [("y", FLOAT, [2, 4])],
        tmp_path / "values.onnx",
    )
    report = to_half(source, tmp_path / "half.onnx", ())
    assert report.float32_nodes == {"constant": 2}
    assert report.half_nodes == 2
    assert report.clamped == ("weights",)
    assert report.vanished == 1
    assert "weights" in str(report)
    held = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer
    }
    np.testing.assert_array_equal(
        held["weights/half"], np.array([[1, 65504, 0, 0], [-np.inf, -65504, 0.5, 2]], np.float16)
    )
    assert held["epsilon"] == np.float32(1e-12)
    assert np.array_equal(as_half(np.array([np.nan, 1e-9])), np.array([np.nan, 0], np.float16), equal_nan=True)


def test_weights_shared_between_types_are_written_in_both(tmp_path: Path) -> None:
    """A weight that a float32 and a half node read is not rounded for the former."""
    weight = np.array([1 / 3], np.float32).repeat(2)
    source = graph_of(
        [
            helper.make_node("Cast", ["images"], ["x"], to=FLOAT),
            helper.make_node("Mul", ["x", "weight"], ["normal"]),
            helper.make_node("Relu", ["normal"], ["kept"]),
            helper.make_node("Mul", ["kept", "weight"], ["y"]),
        ],
        {"weight": weight},
        [("images", UINT8, [1, 2])],
        [("y", FLOAT, [1, 2])],
        tmp_path / "shared.onnx",
    )
    report = to_half(source, tmp_path / "half.onnx")
    assert report.float32_nodes == {"input": 2}
    held = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer
    }
    np.testing.assert_array_equal(held["weight"], weight)
    np.testing.assert_array_equal(held["weight/half"], weight.astype(np.float16))


def test_every_node_has_a_part() -> None:
    """With all parts kept nothing is half, and no two reasons are given for a node."""
    for source in (MATTE, DEFORMABLE, DETECTOR):
        model = prepared(source)
        reasons = staying_float32(model, PARTS)
        assert set(reasons.values()) <= {*PARTS, "size", "standard"}
        assert {"input", "rest"} <= set(reasons.values())
        assert set(staying_float32(model, KEEP)) < set(reasons)


def test_refused_files(tmp_path: Path) -> None:
    """A half file is not halved again; branches are not taken."""
    half = tmp_path / "half.onnx"
    to_half(DETECTOR, half)
    with pytest.raises(PrecisionError, match="half-precision weights already"):
        to_half(half, tmp_path / "again.onnx")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", FLOAT, [1])]
    )
    source = graph_of(
        [helper.make_node("If", ["choice"], ["y"], then_branch=branch, else_branch=branch)],
        {},
        [("choice", TensorProto.BOOL, []), ("x", FLOAT, [1])],
        [("y", FLOAT, [1])],
        tmp_path / "branches.onnx",
    )
    with pytest.raises(PrecisionError, match="subgraphs"):
        to_half(source, tmp_path / "never.onnx")
    assert not (tmp_path / "never.onnx").exists()
